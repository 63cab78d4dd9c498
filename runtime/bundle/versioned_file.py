"""JSON files of a bundle that state the version of their schema."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.json_text import read_json
from starflow.runtime.plain.validation import one_line

Read = TypeVar("Read")


def read_versioned(
    path: Path, validate: Callable[[Any], Read], version: int, *, again: str, newer: str, known_fields: tuple[str, ...]
) -> Read:
    """Read a JSON file with a `schema_version`.

    Args:
        validate: Turns the content of the file into what it describes.
        version: Newest schema that can be read.
        again: What mends a damaged file.
        newer: What to do about a newer schema.
        known_fields: Fields that a misspelt one may stand for.

    Raises:
        BundleError: the file cannot be read, is not JSON, has a newer schema, or does not follow its schema.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {again}") from None
    except ValueError as error:
        raise BundleError(f"{path}: is not JSON ({error}); {again}") from None
    found = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(found, int) and found > version:
        raise BundleError(f"{path}: has schema {found}, this starflow reads {version}; {newer}")
    try:
        return validate(content)
    except ValidationError as error:
        raise BundleError(f"{path}: {one_line(error, known_fields)}; {again}") from None
