"""YAML that a user wrote: a file, or the value of an option."""

import json
from pathlib import Path
from typing import Any

import yaml

from starflow.runtime.plain.errors import StarflowError, UsageError


def read_yaml(path: Path, what: str, error: type[StarflowError]) -> Any:
    """What a YAML file holds, or a JSON file if its name ends in .json.

    Args:
        error: Raised, in one line, if its content is not YAML or JSON.

    Raises:
        UsageError: the file cannot be read.
    """
    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if is_json else yaml.safe_load(text)
    except OSError as found:
        missing = error if issubclass(error, UsageError) else UsageError
        raise missing(f"{path}: cannot read the {what}: {found.strerror}") from None
    except (yaml.YAMLError, ValueError) as found:
        raise error(f"{path}: not {'JSON' if is_json else 'YAML'}: {' '.join(str(found).split())}") from None


def read_override(text: str, expected: str, error: type[StarflowError]) -> tuple[str, Any]:
    """The name and value in the text `NAME=VALUE` of --set; `expected` and `error` are for text of another form."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise error(f"--set {text}: expected {expected}")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise error(f"--set {text}: {value!r} is not a YAML value") from None
