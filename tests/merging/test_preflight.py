"""What preflight refuses before a weight is read, and what it plans."""

import json

import pytest
import torch

from merging.errors import InputError
from merging.preflight import preflight
from merging.recipe import Recipe
from merging.tensor_file import save_tensors


@pytest.fixture(autouse=True)
def bare_models(monkeypatch):
    """The models here are weights and a config, of which no note is wanted (see test_surroundings)."""
    monkeypatch.setattr("merging.preflight.absence_notes", lambda recipe, models: [])


def recipe(method="task_arithmetic", **keys):
    models = [{"model": "one"}, {"model": "two"}]
    return Recipe.parse({"merge_method": method, "base_model": "base", "models": models, **keys})


def problems(models, **keys) -> list[str]:
    with pytest.raises(InputError) as caught:
        preflight(recipe(**keys), models)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_a_plan_counts_tensors_and_bytes(family):
    plan = preflight(recipe(), family)
    size = sum(t.numel() * 4 for t in plan_tensors(family["base"]).values())
    assert (plan.tensors, plan.bytes_read, plan.bytes_written) == (12, 3 * size, size)
    assert preflight(recipe(out_dtype="bfloat16"), family).bytes_written == size // 2
    assert plan.peak_memory < 400_000_000
    assert plan.notes == []


def plan_tensors(folder):
    from merging.tensor_file import load_tensors

    return load_tensors(folder / "model.safetensors")[0]


def test_all_models_problems_are_told_at_once(family, make_model):
    family["one"] = make_model("other", architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    (family["two"] / "model.safetensors").write_bytes((family["two"] / "model.safetensors").read_bytes()[:-4])
    found = problems(family)
    assert len(found) == 2
    assert "other: architecture ['Qwen2ForCausalLM'] (qwen2)" in found[0] or "other: architecture" in found[1]
    assert any("truncated" in problem and "model.safetensors" in problem for problem in found)


def test_a_missing_tensor_an_extra_one_and_a_shape_are_named(family, make_model):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = torch.ones(2)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(3, 8)

    family["one"] = make_model("changed", change=change)
    text = "\n".join(problems(family))
    assert "tensor model.norm.weight is missing" in text
    assert "tensor model.extra.weight is not in base" in text
    assert "tensor model.layers.0.mlp.up_proj.weight has shape [3, 8], but [12, 8]" in text


def test_fewer_token_rows_than_the_base_is_an_error_and_more_are_cut(family, make_model):
    def rows(n):
        def change(tensors):
            for name in ("lm_head.weight", "model.embed_tokens.weight"):
                tensors[name] = torch.ones(n, 8)

        return change

    family["one"] = make_model("fewer", change=rows(15))
    assert "lm_head.weight has shape [15, 8], but [16, 8]" in "\n".join(problems(family))
    family["one"] = make_model("more", change=rows(18))
    assert preflight(recipe(), family).outputs["lm_head.weight"].shape == (16, 8)


def test_heads_must_agree(family, make_model):
    family["one"] = make_model("heads", num_attention_heads=4)
    assert "num_attention_heads is 4, but 2 in base" in problems(family)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "model_type"),
        ('{"a": 1}', "model_type"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "quantised"),
    ],
)
def test_a_bad_config_is_named(family, text, expected):
    (family["one"] / "config.json").write_text(text)
    (problem,) = problems(family)
    assert "config.json" in problem
    assert expected in problem


def test_a_folder_that_is_not_there(family, tmp_path):
    found = problems({**family, "one": tmp_path / "none"}) + problems({"base": family["base"], "one": family["one"]})
    assert found == [f"one: no such folder: {tmp_path / 'none'}", "two: no folder was given for this model"]


def test_a_tied_base_and_an_untied_expert_do_not_go_together(family, make_model):
    def tie(tensors):
        del tensors["lm_head.weight"]

    family["base"] = make_model("tied", change=tie, tie_word_embeddings=True)
    assert "lm_head.weight of its own" in problems(family)[0]


def test_aim_needs_fitting_statistics(family, tmp_path):
    assert "needs activation statistics" in problems(family, aim={})[0]
    save_tensors(tmp_path / "s.safetensors", {"lm_head": torch.ones(9), "model.norm": torch.tensor([float("nan")] * 8)})
    assert (
        "model.norm are not one vector of finite"
        in problems(family, aim={"statistics": str(tmp_path / "s.safetensors")})[0]
    )
    save_tensors(tmp_path / "t.safetensors", {"lm_head": torch.ones(9)})
    text = "\n".join(problems(family, aim={"statistics": str(tmp_path / "t.safetensors")}))
    assert "module lm_head has 9 channels, lm_head.weight has 8" in text
    assert "no statistics of module model.layers.0.input_layernorm" in text


def test_tokenizers_that_disagree_give_a_note(family):
    for name, token in (("base", "x"), ("one", "y"), ("two", "x")):
        tokenizer = {"model": {"vocab": {"a": 0, token: 1}}}
        (family[name] / "tokenizer.json").write_text(json.dumps(tokenizer))
    (note,) = preflight(recipe(), family).notes
    assert note.startswith("one: 1 token ids stand for other tokens than in base (id 1: 'y', not 'x')")


def test_licences_that_differ_give_a_note(family):
    for name, licence in (("base", "mit"), ("one", "apache-2.0")):
        (family[name] / "README.md").write_text(f"---\nlicense: {licence}\n---\n# {name}\n")
    assert preflight(recipe(), family).notes == ["the inputs' licences differ: base: mit, one: apache-2.0"]


@pytest.mark.parametrize("front", ["date: 2024-13-45", "[" * 5000, '!!int ""', "license"])
def test_a_card_that_is_not_understood_stops_no_merge(family, front):
    (family["one"] / "README.md").write_text(f"---\n{front}\n---\n# one\n")
    assert preflight(recipe(), family).notes == []


def test_a_model_without_floating_point_is_refused(family):
    for name in family:
        save_tensors(family[name] / "model.safetensors", {"model.ids": torch.tensor([1, 2])})
    assert problems(family) == [
        f"{family[name]}: none of its tensors are floating point; there is nothing to merge" for name in family
    ]


def test_the_base_under_another_name_is_refused(family):
    one = Recipe.parse({"merge_method": "ties", "base_model": "base", "models": [{"model": "base/"}, {"model": "one"}]})
    with pytest.raises(InputError, match="base/: is the base base under another name"):
        preflight(one, {**family, "base/": family["base"].parent / "x" / ".." / "base"})
    preflight(one.model_copy(update={"merge_method": "linear"}), {**family, "base/": family["base"]})
