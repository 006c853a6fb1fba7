"""The model card: everything needed to trace a merge and to make it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from merging.preflight import Plan
from merging.recipe import Recipe

CARD = """\
---
{front}---

# {title}

{summary} ({paper}){aim}, made with mergeflow.

## Recipe

```yaml
{recipe}```

To make it again, save the recipe as `recipe.yaml` and run:

```sh
{command}
```

## Provenance

{provenance}

## Change by block

L2 norm of the difference to the base.

{norms}
"""


def write_card(
    folder: Path,
    recipe: Recipe,
    plan: Plan,
    identities: Mapping[str, str],
    digest: str,
    norms: Mapping[str, float],
    metadata: Mapping,
) -> None:
    """Write README.md into a model folder. `identities` are the inputs' digests, `digest` is the output's."""
    method = recipe.method
    front = {"library_name": "transformers", "tags": ["merge", "mergeflow"], "base_model": recipe.inputs}
    rows = [("Output digest", f"`{digest}`")]
    rows += [(f"Input `{name}`", f"`{identities[name]}`") for name in recipe.inputs]
    rows += [("Seed", recipe.random_seed)]
    if recipe.aim:
        rows.append(("AIM", f"omega {recipe.aim.omega:g} (arXiv 2502.02421)"))
    rows += [(str(key), value) for key, value in metadata.items()]
    rows += [(name, found) for name, found in versions().items()]
    rows += [("Note", note) for note in plan.notes]
    text = CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=f"A {recipe.merge_method} merge",
        summary=method.summary[0].upper() + method.summary[1:],
        paper=method.paper,
        aim=f", relaxed with AIM at omega {recipe.aim.omega:g}" if recipe.aim else "",
        recipe=recipe.to_yaml(),
        command="mergeflow merge recipe.yaml OUT",
        provenance=table("What", "Value", rows),
        norms=table("Block", "Norm", [(block, f"{norm:.6g}") for block, norm in norms.items()])
        if norms
        else "No base.",
    )
    (folder / "README.md").write_text(text)


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
