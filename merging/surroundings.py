"""What stands around the weights of a model folder: config, generation config, tokenizer, chat template."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

from merging.digest import is_model_file
from merging.errors import InputError
from merging.placement import stacked_layers
from merging.preflight import Plan
from merging.recipe import Recipe


def copy_surroundings(plan: Plan, recipe: Recipe, folder: Path) -> None:
    """Copy the frame's files other than weights into `folder`, its config saying the dtype that is written."""
    source = plan.models[recipe.frame].checkpoint.folder
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and is_model_file(name) and not name.endswith((".safetensors", ".index.json")):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)  # not the mode: a reader in another container may be another user
    write_config(plan, recipe, folder / "config.json")
    if recipe.chat_template:
        write_chat_template(chosen_template(plan, recipe), folder)


def write_config(plan: Plan, recipe: Recipe, path: Path) -> None:
    """Make the config name the output's dtype and number of layers; one that does already keeps its bytes."""
    config = plan.models[recipe.frame].config
    changed = dict(config)
    if recipe.out_dtype or recipe.dtype:
        changed["torch_dtype" if "torch_dtype" in config else "dtype"] = recipe.out_dtype or recipe.dtype
    if recipe.slices:
        layers = stacked_layers(recipe)
        changed["num_hidden_layers"] = len(layers)
        kinds = plan.models[recipe.slices[0].sources[0].model].config.get("layer_types")
        if isinstance(kinds, list) and max(layers) < len(kinds):
            changed["layer_types"] = [kinds[layer] for layer in layers]
    if changed != config:
        path.write_text(json.dumps(changed, indent=2) + "\n")


def chosen_template(plan: Plan, recipe: Recipe) -> str:
    """The recipe's chat template: a Jinja text itself, or with `auto` the one most inputs have."""
    if recipe.chat_template != "auto":
        if "{{" not in recipe.chat_template and "{%" not in recipe.chat_template:
            raise InputError(f"chat_template: expected auto or a Jinja template, found {recipe.chat_template!r}")
        return recipe.chat_template
    found = [template for model in plan.models.values() if (template := chat_template(model.checkpoint.folder))]
    if not found:
        raise InputError("chat_template: auto, but none of the models has a chat template")
    return Counter(found).most_common(1)[0][0]


def chat_template(folder: Path) -> str | None:
    """A model's chat template, from its own file or its tokenizer_config.json."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text()
    try:
        template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    except (OSError, ValueError):
        return None
    return template if isinstance(template, str) else None


def write_chat_template(template: str, folder: Path) -> None:
    """Put a chat template beside the tokenizer, and take any other away."""
    (folder / "chat_template.jinja").write_text(template)
    (folder / "chat_template.json").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text())
        if config.pop("chat_template", None) is not None:
            path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
