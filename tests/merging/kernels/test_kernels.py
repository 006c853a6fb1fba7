"""The kernels give the bits of the torch definitions, block for block and through the whole merge."""

from dataclasses import replace
from pkgutil import resolve_name

import pytest
import torch

from merging import aim
from merging.engine import merge_many
from merging.errors import InputError
from merging.finishing import Target
from merging.kernels import widen_columns
from merging.kernels.finish import finish
from merging.methods import METHODS
from merging.methods import widen as widen_method
from merging.methods.definition import merge_whole
from merging.preflight import Output
from merging.recipe import Recipe
from merging.tensor_file import load_tensors, save_tensors

COMPILED = [name for name, method in METHODS.items() if method.kernel]
MODEL_WIDE = {"merge_method": "ties", "parameters": {"density": 0.3, "trim": "model"}}
SHAPE = (37, 1500)  # more than a tile in a row, and no multiple of one
CASES = [
    ("linear", {}, [1, 1, 1]),
    ("linear", {"normalize": False}, [0.3, -2, 1]),
    ("task_arithmetic", {"lambda": 0.7}, [1, 0.5, -0.25]),
    ("task_arithmetic", {"normalize": True}, [1, 1, 1]),
    ("ties", {"density": 0.2}, [1, 1, 1]),
    ("ties", {"density": 0.5, "lambda": 0.3, "trim": "mergelm"}, [1, 2, 0.5]),
    ("ties", {"density": 0.3, "normalize": False, "rescale": "l1"}, [1, -1, 2]),
    ("ties", {"density": 1.0}, [1, 1, 1]),
    ("ties", {"density": 0.0}, [1, 1, 1]),
    ("dare_linear", {"density": 0.2}, [1, 1, 1]),
    ("dare_linear", {"density": 1.0, "normalize": True}, [0.5, 2, 1]),
    ("dare_linear", {"density": 0.4, "rescale": "l1"}, [1, 1, 1]),
    ("dare_ties", {"density": 0.6, "lambda": 0.5}, [1, 1, 0.5]),
    ("dare_ties", {"density": 0.3, "normalize": True}, [1, 1, 1]),
    ("widen", {}, []),
]


def tensors(dtype, seed=0, shape=SHAPE):
    """A base and three experts whose deltas hold zeros, equal magnitudes and denormals."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) * 0.1
    experts = [base + torch.randn(shape, generator=generator) * 0.01 for _ in range(3)]
    experts[0][:4] = base[:4]
    experts[1][5:9] = base[5:9] + 0.015625
    experts[2][7:11] = base[7:11] - 0.015625
    base[0, :8], experts[1][0, :8] = 0.0, torch.tensor([0.0, -0.0, 1e-41, -1e-41, 1e18, -1e18, 1e-30, 1.0])
    return base.to(dtype), [expert.to(dtype) for expert in experts]


def as_stored(tensor):
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def stored(group):
    """A group as kernels read it."""
    base = None if group.base is None else as_stored(group.base)
    return replace(group, base=base, experts=[as_stored(expert) for expert in group.experts])


def same_bits(one, other):
    return torch.equal(one.view(torch.int32), torch.as_tensor(other).view(torch.int32))


def surveyed(method, group):
    """A group with what the torch survey of it finds."""
    caught = {}
    merge_whole(replace(method, merge=lambda found: caught.setdefault("group", found)), group)
    return caught["group"]


def test_every_case_of_this_file_has_a_kernel_and_every_kernel_a_case():
    assert {case[0] for case in CASES} == set(COMPILED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("method", "parameters", "weights"), CASES)
def test_a_kernel_gives_the_bits_of_its_definition(group, method, parameters, weights, dtype):
    base, experts = tensors(dtype)
    needs_base = METHODS[method].needs_base
    settings = [{"weight": weight} for weight in weights] or None
    short = group(method, base if needs_base else None, experts, settings, seed=5, **parameters)
    wide_base = base.float() if needs_base else None
    wide = surveyed(METHODS[method], replace(short, base=wide_base, experts=[expert.float() for expert in experts]))
    expected = METHODS[method].merge(wide)
    kernel = resolve_name(METHODS[method].kernel)
    assert same_bits(expected, kernel(replace(stored(short), facts=wide.facts)))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "ties"])
def test_a_block_of_rows_is_merged_as_within_the_whole(group, method, monkeypatch):
    monkeypatch.setattr("merging.methods.random.CHUNK", 16_384)  # so that the block crosses into another chunk
    base, experts = tensors(torch.float32)
    whole = surveyed(METHODS[method], group(method, base, experts, density=0.3))
    expected = METHODS[method].merge(whole)
    rows = replace(whole, base=base[6:30], experts=[e[6:30] for e in experts], start=6 * SHAPE[1])
    assert same_bits(expected[6:30], resolve_name(METHODS[method].kernel)(stored(rows)))


@pytest.mark.parametrize("name", ["w", "model.embed_tokens.weight"])
def test_widen_sums_columns_as_its_definition_does(group, name):
    base, experts = tensors(torch.float32)
    wide = group("widen", base, experts, name=name)
    sides = widen_method.column_sums(wide), widen_columns.column_sums(stored(wide))
    for expected, found in zip(*sides, strict=True):
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        else:
            assert found == expected
    scored = surveyed(METHODS["widen"], wide)
    assert same_bits(METHODS["widen"].merge(scored), widen_columns.weigh(stored(scored)))


@pytest.mark.parametrize("kind", ["plain", "vector", "number", "no base"])
@pytest.mark.parametrize("inputs", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_finishing_rounds_and_relaxes_as_torch_does(kind, inputs, dtype):
    base, (merged, *_) = tensors(inputs)
    merged[0, :8] = 0.5  # no overflow in float16
    merged, across = merged.float() * 1.001, torch.linspace(0, 1, SHAPE[1])
    factor = {"plain": None, "vector": across, "number": torch.tensor(0.3), "no base": None}[kind]
    pieces = []
    target = Target({"w": Output(dtype, SHAPE, None)}, lambda name, piece, start: pieces.append(piece.reshape(SHAPE)))
    square = target.take_array("w", 0, None if kind == "no base" else as_stored(base), merged.numpy(), factor)
    expected = merged if factor is None else aim.scaled(base.float(), merged, factor)
    assert torch.equal(pieces[0], expected.to(dtype))
    if kind == "no base":
        assert square is None
    else:
        assert square == pytest.approx(float(((expected - base.float()).double() ** 2).sum()), rel=1e-5)


def test_rounding_to_bfloat16_is_to_nearest_ties_to_even():
    bits = torch.arange(0, 1 << 31, 4099, dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)
    values = torch.cat([values, -values])[None]
    values = values[:, values[0].isfinite()]
    import numpy

    rounded, _ = finish(values.numpy(), None, None, numpy.uint16)
    assert torch.equal(torch.from_numpy(rounded).view(torch.int16), values.to(torch.bfloat16).view(torch.int16))


@pytest.mark.parametrize("method", COMPILED)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_and_inf_are_refused(group, method, value, dtype):
    from merging.kernels.tiles import NotFinite

    base, experts = tensors(dtype)
    wide = group(method, base.float(), [expert.float() for expert in experts])
    facts = surveyed(METHODS[method], wide).facts
    experts[2][30, 1499] = value
    bad = stored(replace(wide, base=base, experts=experts, facts=facts))
    with pytest.raises(NotFinite) as caught:
        resolve_name(METHODS[method].kernel)(bad)
    assert caught.value.index == 2


@pytest.fixture
def large(monkeypatch):
    """Let every merge run its kernels, however small."""
    return lambda: monkeypatch.setattr("merging.stream.SMALL", 0)


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merges_with_kernels_give_the_same_files(make_model, tmp_path, large, dtype):
    base = {}

    def keep_some_columns(tensors):
        for name, tensor in tensors.items():
            if tensor.dim() > 1:
                tensor[:, : tensor.shape[1] // 3] = base.setdefault(name, tensor)[:, : tensor.shape[1] // 3]

    names = enumerate(["base", "one", "two"])
    family = {n: make_model(n, seed, keep_some_columns, dtype=getattr(torch, dtype)) for seed, n in names}
    shapes = {name: tensor.shape for name, tensor in load_tensors(family["base"] / "model.safetensors")[0].items()}
    statistics = tmp_path / "statistics.safetensors"
    save_tensors(statistics, {name.removesuffix(".weight"): torch.rand(shape[-1]) for name, shape in shapes.items()})
    recipes = [
        Recipe.parse(
            {
                "merge_method": method,
                "base_model": "base",
                "models": [{"model": "one"}, {"model": "two"}],
                "parameters": {"density": 0.4} if "density" in METHODS[method].parameters else {},
                **more,
            }
        )
        for method in COMPILED
        for more in ({}, {"aim": {"omega": 0.3}}, {"out_dtype": "float16"}, {"dtype": "bfloat16"})
    ]
    recipes.append(Recipe.parse(recipes[0].model_dump(exclude_unset=True) | MODEL_WIDE))

    def made(side: str) -> list[bytes]:
        outs = [tmp_path / side / str(i) for i in range(len(recipes))]
        merge_many(recipes, outs, models=family, statistics=statistics)
        return [(out / "model.safetensors").read_bytes() for out in outs]

    definitions = made("definitions")
    large()
    assert made("kernels") == definitions


def test_a_damaged_input_is_named(make_model, tmp_path, large):
    def damage(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")

    family = {"base": make_model("base"), "one": make_model("one", 1, damage)}
    large()
    recipe = Recipe.parse({"merge_method": "ties", "base_model": "base", "models": [{"model": "one"}]})
    with pytest.raises(InputError, match=r"one: tensor model\.layers\.0\.mlp\.up_proj\.weight holds NaN or Inf"):
        merge_many([recipe], [tmp_path / "out"], models=family)
    assert not (tmp_path / "out").exists()


def test_dividing_by_0_is_what_it_is_in_torch(group):
    one = torch.tensor([[1.0, -1.0, 0.0]])
    given = group("linear", None, [one.numpy(), one.numpy()], [{"weight": 1.0}, {"weight": -1.0}])
    assert torch.from_numpy(resolve_name(METHODS["linear"].kernel)(given)).isnan().all()


def test_compiled_kernels_are_kept_apart_for_other_sources(tmp_path, monkeypatch):
    from merging.kernels import tiles

    for name in ("tiles.py", "other.py"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(tiles, "__file__", str(tmp_path / "tiles.py"))
    before = tiles.cache_folder()
    assert tiles.cache_folder() == before
    (tmp_path / "other.py").write_text("changed")
    assert tiles.cache_folder() != before
    assert before.is_relative_to(tmp_path)
