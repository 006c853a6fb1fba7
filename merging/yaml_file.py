"""Reading a YAML file that a person wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from merging.errors import InputError

# what PyYAML raises for text that is not YAML, or a value that is not of its kind: 2024-13-45, !!int ""
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML lets the last win; reads 1e-5 as a number, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


WITHOUT_POINT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", WITHOUT_POINT, list("-+0123456789"))


def read_yaml(path: str | Path) -> Any:
    """What the file holds; None if it is empty. Raises InputError, one line naming the file."""
    try:
        return yaml.load(Path(path).read_text(), Loader=Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except NOT_YAML as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
