"""What stands around the weights of a model folder: config, generation config, tokenizer, chat template."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

from merging.chat_template import chat_template, chosen_template, write_chat_template
from merging.digest import TOKENIZER_FILES, is_model_file
from merging.errors import InputError
from merging.inputs import Model
from merging.placement import stacked_layers
from merging.preflight import Plan
from merging.recipe import Recipe
from merging.vocabulary import has_token_rows
from merging.vocabulary.tokenizer import is_tokenizer_file, write_tokenizer

GENERATION = "generation_config.json"
TEMPLATES = {"chat_template.jinja", "chat_template.json"}
# the keys of a config and a generation config whose values are token ids end so
TOKEN_IDS = ("_token_id", "_token_ids", "bad_words_ids", "suppress_tokens")


def copy_surroundings(plan: Plan, recipe: Recipe, folder: Path) -> None:
    """Copy the frame's files other than weights into `folder`, with the output's tokenizer, dtype and sizes."""
    source = plan.models[recipe.frame].checkpoint.folder
    for path in sorted(source.iterdir()):
        weights = path.name.endswith((".safetensors", ".index.json"))
        if path.is_file() and is_model_file(path.name) and not weights and not is_tokenizer_file(path.name):
            shutil.copyfile(path, folder / path.name)  # not the mode: a reader in another container may be another user
    donor = plan.models[plan.matching.source]
    write_tokenizer(donor.checkpoint.folder, plan.matching.added, folder)
    write_config(plan, recipe, folder / "config.json")
    if donor.name != recipe.frame:
        write_generation_config(source, donor, folder)
    if recipe.chat_template:
        write_chat_template(chosen_template(recipe, plan.models), folder)


def refuse_lost_files(plan: Plan, recipe: Recipe, folder: Path) -> None:
    """Raises InputError for a generation config, tokenizer or template that the output should have and lacks."""
    frame, donor = (plan.models[name].checkpoint.folder for name in (recipe.frame, plan.matching.source))
    replaced = TEMPLATES if recipe.chat_template else set()
    wanted = {name for name in TOKENIZER_FILES - replaced if (donor / name).is_file()}
    wanted |= {GENERATION} if (frame / GENERATION).is_file() else set()
    lost = sorted(name for name in wanted if not (folder / name).is_file())
    problems = [f"{folder}: {name} is missing, which its models have" for name in lost]
    if (recipe.chat_template or chat_template(donor)) and not chat_template(folder):
        problems.append(f"{folder}: has no chat template, which its models have")
    if problems:
        raise InputError(problems)


def write_config(plan: Plan, recipe: Recipe, path: Path) -> None:
    """Make the config name the output's dtype, sizes and special tokens; one that does already keeps its bytes."""
    config = plan.models[recipe.frame].config
    changed = copy.deepcopy(config)
    if recipe.out_dtype or recipe.dtype:
        changed["torch_dtype" if "torch_dtype" in config else "dtype"] = recipe.out_dtype or recipe.dtype
    if recipe.slices:
        layers = stacked_layers(recipe)
        changed["num_hidden_layers"] = len(layers)
        kinds = plan.models[recipe.slices[0].sources[0].model].config.get("layer_types")
        if isinstance(kinds, list) and max(layers) < len(kinds):
            changed["layer_types"] = [kinds[layer] for layer in layers]
    if plan.matching.key:
        rows = next(output.shape[0] for name, output in plan.outputs.items() if has_token_rows(name))
        for part in (changed, changed.get("text_config")):
            if isinstance(part, dict) and "vocab_size" in part:
                part["vocab_size"] = rows
    if plan.matching.source != recipe.frame:
        changed = with_token_ids(changed, plan.models[plan.matching.source].config)
    if changed != config:
        path.write_text(json.dumps(changed, indent=2) + "\n")


def write_generation_config(frame: Path, donor: Model, folder: Path) -> None:
    """Make the generation config name the special tokens of the model that gives the tokenizer, if either has one."""
    ours, theirs = (read_json(source / GENERATION) for source in (frame, donor.checkpoint.folder))
    changed = with_token_ids(ours or {}, theirs or donor.config)
    if (ours or theirs) and changed != ours:
        (folder / GENERATION).write_text(json.dumps(changed, indent=2) + "\n")


def with_token_ids(config: dict, other: dict) -> dict:
    """A config with the token ids of another, none of its own."""
    kept = {key: value for key, value in config.items() if key in other or not key.endswith(TOKEN_IDS)}
    return kept | {key: value for key, value in other.items() if key.endswith(TOKEN_IDS)}


def read_json(path: Path) -> dict | None:
    """A JSON file that need not be there. Raises InputError naming one that cannot be read."""
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
