"""The model card: everything needed to trace a merge and to make it again."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import yaml

from merging.inputs import licence
from merging.layers import in_order

if TYPE_CHECKING:
    from merging.jobs import Merge
    from merging.lambdas import Lambdas
    from merging.recipe import Recipe

STATISTICS = "statistics.safetensors"  # what a card calls the statistics where the recipe names no file
CONSENSUS = "consensus{}.safetensors"  # likewise for ACM's
CARD = """\
---
{front}---

# {title}

{summary} ({paper}){aim}{acm}, made with mergeflow.

## Recipe

{fence}yaml
{recipe}{fence}

To make it again, save the recipe as `recipe.yaml`{files}, put the models where it names them, and run:

```sh
{command}
```

## Provenance

{provenance}

## Change by block

L2 norm of the difference to the base.

{norms}
{lambdas}"""
LAMBDAS = """
## Lambda by module

What ACM (arXiv 2505.14009) scales the change of each layer by. {lengths}

{lambdas}
"""


def write_card(
    merge: Merge, identities: Mapping[str, str], digest: str, norms: Mapping[str, float], metadata: Mapping
) -> None:
    """Write README.md into the folder of a merge. `identities` are the inputs' digests, `digest` is the output's."""
    recipe = naming_files(merge.recipe)
    method = recipe.method
    options = f" --shard-size {merge.shard_size}" if merge.shard_size else ""
    options += f" --device {merge.device}" if merge.device != "cpu" else ""
    text = CARD.format(
        front=front_matter(merge),
        title=f"A {recipe.merge_method} merge",
        summary=method.summary[0].upper() + method.summary[1:],
        paper=method.paper,
        aim=f", relaxed with AIM at omega {recipe.aim.omega:g}" if recipe.aim else "",
        recipe=recipe.to_yaml(),
        fence=fence(recipe.to_yaml()),
        acm=f", scaled with ACM at t {recipe.acm.t:g}" if recipe.acm else "",
        files=" and the activation statistics under the names it gives" if recipe.aim or recipe.acm else "",
        command=f"mergeflow merge recipe.yaml OUT{options}",
        provenance=table("What", "Value", provenance(merge, identities, digest, metadata)),
        norms=table("Block", "Norm", [(block, f"{norm:.6g}") for block, norm in norms.items()])
        if norms
        else "No base.",
        lambdas=lambda_section(merge.plan.lambdas) if merge.plan.lambdas else "",
    )
    (merge.folder.partial / "README.md").write_text(text)


def fence(text: str) -> str:
    """Backticks that close no sooner than the text ends: one more than its longest run, at least three."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def naming_files(recipe: Recipe) -> Recipe:
    """The recipe, with a name for each file of statistics that it needs and does not name."""
    named = {}
    if recipe.aim and not recipe.aim.statistics:
        named["aim"] = recipe.aim.model_copy(update={"statistics": STATISTICS})
    if recipe.acm and not recipe.acm.statistics:
        files = {model: CONSENSUS.format(f"-{i}") for i, model in enumerate(recipe.measured, start=1)}
        only = files if recipe.acm_by_expert else CONSENSUS.format("")
        named["acm"] = recipe.acm.model_copy(update={"statistics": only})
    return recipe.model_copy(update=named)


def lambda_section(lambdas: Lambdas) -> str:
    """Lambda by module, and what it follows: the lengths of the texts."""
    lengths = ", ".join(f"{name} {value:.4g}" for name, value in lambdas.lengths.items())
    models = list(lambdas.by_model)
    head = " | ".join(["Module", *(f"`{model}`" for model in models)])
    rows = [
        " | ".join([module, *(f"{lambdas.by_model[model][module]:.4f}" for model in models)])
        for module in in_order(lambdas.by_model[models[0]])
    ]
    lines = [f"| {row} |" for row in [head, "---|" * len(models) + "---", *rows]]
    return LAMBDAS.format(lengths=f"Tokens of the calibration texts: {lengths}.", lambdas="\n".join(lines))


def front_matter(merge: Merge) -> str:
    """The YAML that opens a card on the hub; the licence is named where all inputs have the same."""
    front = {"library_name": "transformers", "tags": ["merge", "mergeflow"], "base_model": merge.recipe.inputs}
    licences = {licence(model.checkpoint.folder) for model in merge.plan.models.values()}
    if len(licences) == 1 and None not in licences:
        front["license"] = licences.pop()
    return yaml.safe_dump(front, sort_keys=False)


def provenance(merge: Merge, identities: Mapping[str, str], digest: str, metadata: Mapping) -> list[tuple[str, object]]:
    """What the merge was made of and with."""
    recipe = merge.recipe
    rows: list[tuple[str, object]] = [("Output digest", f"`{digest}`")]
    for name in recipe.inputs:
        named = licence(merge.plan.models[name].checkpoint.folder)
        rows.append((f"Input `{name}`", f"`{identities[name]}`" + (f", licence {named}" if named else "")))
    rows += [("Tokenizer", merge.plan.matching.tokenizer), ("Seed", recipe.random_seed)]
    if recipe.aim:
        rows.append(("AIM", f"omega {recipe.aim.omega:g} (arXiv 2502.02421), statistics `{merge.calibration}`"))
    if recipe.acm:
        control = f", control {recipe.acm.control}" if recipe.acm.control else ""
        rows.append(("ACM", f"t {recipe.acm.t:g}{control} (arXiv 2505.14009)"))
        rows += [(f"ACM statistics of `{name}`", f"`{digest}`") for name, digest in merge.consensus.items()]
    rows += [(str(key), value) for key, value in metadata.items()]
    rows += versions().items()
    return rows + [("Note", note) for note in merge.plan.notes]


def versions() -> dict[str, str]:
    """The versions of what took part in a merge."""
    found = {"python": platform.python_version()}
    for package in ("mergeflow", "torch", "transformers", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def table(left: str, right: str, rows) -> str:
    """A Markdown table of two columns."""
    lines = [f"| {left} | {right} |", "|---|---|"]
    lines += [f"| {str(key).replace('|', '/')} | {str(value).replace('|', '/')} |" for key, value in rows]
    return "\n".join(lines)


def norms_by_block(squares: Mapping[str, float]) -> dict[str, float]:
    """L2 norms by block of the model, from sums of squares by tensor."""
    sums: dict[str, float] = {}
    for name in sorted(squares):
        block = block_of(name)
        sums[block] = sums.get(block, 0.0) + squares[name]
    return {block: value**0.5 for block, value in sums.items()}


def block_of(name: str) -> str:
    """The block of the model a tensor is part of: its decoder layer, or its module."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name.removesuffix(".weight")
