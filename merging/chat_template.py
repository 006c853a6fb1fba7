"""The chat template of a merge: a text of the recipe's own, or the one that most inputs have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from merging.errors import InputError
from merging.inputs import Model
from merging.recipe import Recipe


def chosen_template(recipe: Recipe, models: Mapping[str, Model]) -> str:
    """The recipe's `chat_template`: a Jinja text itself, or with `auto` the one most inputs have.

    Of several that as many have the base's is taken, else the first in the order of their texts: the order of the
    experts decides nothing. Raises InputError where there is none.
    """
    asked = recipe.chat_template
    if asked != "auto":
        if "{{" not in asked and "{%" not in asked:
            raise InputError(f"chat_template: expected auto or the text of a Jinja template, found {asked!r}")
        return asked
    found = {name: template for name, model in models.items() if (template := chat_template(model.checkpoint.folder))}
    if not found:
        raise InputError("chat_template: auto, but none of the models has a chat template")
    counts = Counter(found.values())
    return min(counts, key=lambda text: (-counts[text], text != found.get(recipe.frame), text))


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
