"""The promises of a merge: the same bytes, nothing half-written, nothing damaged passed on."""

import json
import shutil

import pytest
import torch
import yaml

from merging.digest import model_digest, model_files
from merging.engine import merge, merge_many
from merging.errors import InputError
from merging.methods import METHODS
from merging.recipe import Recipe
from merging.tensor_file import load_tensors


def recipe(method="dare_ties", models=(("one", 0.6), ("two", 0.3)), **keys):
    entries = [{"model": name, "parameters": {"weight": weight}} for name, weight in models]
    return Recipe.parse({"merge_method": method, "base_model": "base", "models": entries, **keys})


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("method", METHODS)
def test_same_recipe_same_bytes_in_any_order_of_experts(family, tmp_path, method):
    known = METHODS[method].parameters
    folders = {**family, "again": family["one"]}
    names = ["one", "two", "again"][: METHODS[method].experts[1]]
    entries = [
        {"model": name, "parameters": {"weight": 0.3 * i} if "weight" in known else {}}
        for i, name in enumerate(names, start=1)
    ]

    def made(out, models, workers):
        data = {"merge_method": method, "base_model": "base", "models": models}
        data["parameters"] = {"density": 0.5} if "density" in known else {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("merging.stream.workers", lambda: workers)
            merge(Recipe.parse(data), tmp_path / out, models=folders)
        return weights(tmp_path / out)

    first = made("a", entries, 1)
    assert made("b", entries, 3) == first
    if METHODS[method].symmetric:
        assert made("c", entries[::-1], 2) == first


@pytest.mark.usefixtures("without_postflight")
def test_the_seed_changes_a_random_merge(family, tmp_path):
    for seed in (0, 1):
        merge(recipe(random_seed=seed, parameters={"density": 0.5}), tmp_path / str(seed), models=family)
    assert weights(tmp_path / "0") != weights(tmp_path / "1")


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(family, make_model, tmp_path, value):
    def damage(tensors):
        tensors["model.norm.weight"][3] = value

    family["two"] = make_model("damaged", change=damage)
    with pytest.raises(InputError, match="damaged: tensor model.norm.weight holds NaN or Inf"):
        merge(recipe(), tmp_path / "out", models=family)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("method", ["ties", "karcher"])
def test_a_weight_too_large_for_the_dtype_is_told_from_a_damaged_one(family, make_model, tmp_path, method):
    def enlarge(tensors):
        tensors["model.norm.weight"][3] = 1e5

    family["two"] = make_model("large", change=enlarge)
    one = Recipe.parse(
        {"merge_method": method, "base_model": "base", "models": [{"model": "one"}, {"model": "two"}]}
        | {"dtype": "float16"}
    )
    with pytest.raises(InputError, match="large: tensor model.norm.weight holds numbers too large for float16"):
        merge(one, tmp_path / "out", models=family)


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("method", METHODS)
def test_no_method_lets_a_nan_pass(family, make_model, tmp_path, method):
    def damage(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][2, 3] = float("nan")

    damaged = make_model("damaged", change=damage)
    names = ["one", "two"][: METHODS[method].experts[1]]
    data = {"merge_method": method, "base_model": "base", "models": [{"model": name} for name in names]}
    data["parameters"] = {"density": 0.5} if "density" in METHODS[method].parameters else {}
    with pytest.raises(InputError, match="damaged: tensor model.layers.0.mlp.up_proj.weight holds NaN or Inf"):
        merge(Recipe.parse(data), tmp_path / "out", models={**family, names[-1]: damaged})
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("without_postflight")
def test_finite_weights_whose_sum_overflows_are_fine(family, make_model, tmp_path):
    def huge(tensors):
        tensors["model.norm.weight"].fill_(3e38)

    family["one"] = make_model("huge", change=huge)
    merge(recipe("linear"), tmp_path / "out", models=family)
    norm = load_tensors(tmp_path / "out" / "model.safetensors")[0]["model.norm.weight"]
    torch.testing.assert_close(norm, torch.full((8,), 2e38))


def test_an_overflow_is_refused_by_name(family, tmp_path):
    with pytest.raises(InputError, match="tensor lm_head.weight holds NaN or Inf: the merge overflowed"):
        merge(
            recipe("linear", (("one", 1e7), ("two", 1e7)), parameters={"normalize": False}, out_dtype="float16"),
            tmp_path / "out",
            models=family,
        )
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_holds_something_is_refused(family, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something already"):
        merge(recipe(), tmp_path / "out", models=family)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_merge_is_whole_loads_and_tells_what_it_did(oracle, tmp_path):
    case = oracle("qwen2_tied_bf16")
    told = []
    wanted = case.recipe("ties", parameters={"density": 0.5}, aim={"omega": 0.4})
    found = merge(
        wanted,
        tmp_path / "out",
        models={name: case.model(name) for name in wanted.inputs},
        statistics=case.statistics,
        progress=lambda done, total, label: told.append((done, total)),
        metadata={"Study": "tiny"},
    )
    assert found["files"] == model_files(tmp_path / "out")
    assert found["tensors"] == len(told) == told[-1][0] == told[-1][1]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(found["files"])
    assert set(found["delta_norms"]) == {"model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"}
    card = (tmp_path / "out" / "README.md").read_text()
    for expected in ("merge_method: ties", "omega 0.4", "Seed", "| Study | tiny |", "mergeflow merge recipe.yaml"):
        assert expected in card


def test_delta_norms_are_those_of_the_output(family, tmp_path, without_postflight):
    found = merge(recipe("task_arithmetic"), tmp_path / "out", models=family)["delta_norms"]
    base = load_tensors(family["base"] / "model.safetensors")[0]
    out = load_tensors(tmp_path / "out" / "model.safetensors")[0]
    squares = sum((out[n] - base[n]).double().square().sum() for n in base if ".layers.0." in n)
    assert found["model.layers.0"] == pytest.approx(squares.sqrt().item(), rel=1e-5)


@pytest.mark.usefixtures("without_postflight")
def test_the_config_names_the_dtype_that_was_written(family, tmp_path):
    merge(recipe("linear", out_dtype="bfloat16"), tmp_path / "out", models=family)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    tensors = load_tensors(tmp_path / "out" / "model.safetensors")[0]
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


@pytest.mark.usefixtures("without_postflight")
def test_an_untied_base_and_a_tied_expert_give_an_untied_merge(family, make_model, tmp_path):
    def tie(tensors):
        del tensors["lm_head.weight"]

    family["one"] = make_model("tied", change=tie, tie_word_embeddings=True)
    merge(recipe("linear", (("one", 1.0),)), tmp_path / "out", models=family)
    out = load_tensors(tmp_path / "out" / "model.safetensors")[0]
    assert torch.equal(out["lm_head.weight"], out["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.usefixtures("without_postflight")
def test_integer_tensors_are_carried_over_when_all_agree(family, make_model, tmp_path):
    def number(value):
        return lambda tensors: tensors.update(steps=torch.tensor([value]))

    folders = {name: make_model(f"{name}-7", seed, number(7)) for seed, name in enumerate(family)}
    merge(recipe(), tmp_path / "out", models=folders)
    assert load_tensors(tmp_path / "out" / "model.safetensors")[0]["steps"].tolist() == [7]
    folders["two"] = make_model("two-8", 2, number(8))
    with pytest.raises(InputError, match="integer tensor steps differs"):
        merge(recipe(), tmp_path / "bad", models=folders)


def test_a_full_disk_is_told_before_a_byte_is_written(family, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1500})
    monkeypatch.setattr("merging.disk.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"1\.5 kB are free, the merge takes 1\.1 MB"):
        merge(recipe(), tmp_path / "out", models=family)
    assert not list(tmp_path.glob("out*"))


def test_a_device_that_is_not_there_is_refused(family, tmp_path):
    with pytest.raises(InputError, match="device cuda:99: torch cannot use it here"):
        merge(recipe(), tmp_path / "out", models=family, device="cuda:99")
    assert not list(tmp_path.glob("out*"))


def test_a_candidate_that_overflows_spares_the_others(oracle, tmp_path):
    case = oracle("llama_f32")
    recipes = [
        case.recipe("linear"),
        case.recipe("task_arithmetic", parameters={"lambda": 1e39}),
        case.recipe("linear", dtype="bfloat16"),  # a reading of its own
    ]
    models = {name: case.model(name) for recipe in recipes for name in recipe.inputs}
    told = []

    def done(index, result):
        told.append((index, sorted(path.name for path in tmp_path.iterdir())))
        (tmp_path / str(index)).exists() and shutil.rmtree(tmp_path / str(index))

    good, bad, half = merge_many(recipes, [tmp_path / str(i) for i in range(3)], models=models, done=done)
    assert set(good["delta_norms"]) == set(half["delta_norms"])
    assert isinstance(bad, InputError)
    assert "holds NaN or Inf: the merge overflowed" in bad.problems[0]
    # each is told when it is whole or gone; those of a later reading are not begun to be finished
    assert [index for index, _ in told] == [0, 1, 2]
    assert [[name for name in names if name.isdigit()] for _, names in told] == [["0"], [], ["2"]]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_postflight")
def test_a_damaged_input_fails_all_and_keeps_what_is_published(family, make_model, tmp_path):
    def damage(tensors):
        tensors["model.norm.weight"][3] = float("nan")

    family["base"] = make_model("damaged", 9, change=damage)
    recipes = [recipe("linear", base_model=None), recipe("ties"), recipe("task_arithmetic")]
    told = []
    with pytest.raises(InputError, match="damaged: tensor model.norm.weight holds NaN or Inf"):
        merge_many(
            recipes,
            [tmp_path / f"out{i}" for i in range(3)],
            models=family,
            done=lambda index, result: told.append(index),
        )
    assert told == [0]
    assert [path.name for path in tmp_path.glob("out*")] == ["out0"]


@pytest.mark.usefixtures("without_postflight")
def test_a_card_tells_how_to_make_the_merge_again(family, tmp_path):
    for name, text in (("base", "mit"), ("one", "apache-2.0")):
        (family[name] / "README.md").write_text(f"---\nlicense: {text}\n---\n")
    merge(recipe(random_seed=7), tmp_path / "out", models=family, shard_size=10_000)
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert "license" not in front
    assert front["base_model"] == ["base", "one", "two"]
    assert "mergeflow merge recipe.yaml OUT --shard-size 10000" in card
    for name, licence in (("base", ", licence mit"), ("one", ", licence apache-2.0"), ("two", "")):
        assert f"| Input `{name}` | `{model_digest(model_files(family[name]))}`{licence} |" in card
    assert f"| Output digest | `{model_digest(model_files(tmp_path / 'out'))}` |" in card
    assert "| Seed | 7 |" in card
    assert f"| torch | {torch.__version__} |" in card
    assert Recipe.parse(yaml.safe_load(card.split("```yaml")[1].split("```")[0])) == recipe(random_seed=7)
