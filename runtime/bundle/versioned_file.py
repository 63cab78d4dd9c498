"""JSON files of a bundle that state the version of their schema."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.json_text import parse_json
from starflow.runtime.plain.limits import MOST_MANIFEST_BYTES
from starflow.runtime.plain.regular_file import open_regular
from starflow.runtime.plain.validation import one_line

Read = TypeVar("Read")

LOOKS = 3  # at a file that is being replaced: its digest is replaced right after it


def read_versioned(
    path: Path,
    validate: Callable[[Any], Read],
    version: int,
    *,
    again: str,
    newer: str,
    known_fields: tuple[str, ...],
    name: Path | None = None,
    recorded: Callable[[bytes], bool] = lambda content: True,
    otherwise: str = "",
) -> Read:
    """Read a JSON file with a `schema_version`.

    Args:
        validate: Turns the content of the file into what it describes.
        version: Newest schema that can be read.
        again: What mends a damaged file.
        newer: What to do about a newer schema.
        known_fields: Fields that a misspelt one may stand for.
        name: The name of the file in messages, if it is another one.
        recorded: Whether a digest of the content is known, where one is kept.
        otherwise: How to open a file whose digest is another one all the same.

    Raises:
        BundleError: the file cannot be read, is not JSON, has a newer schema, was changed, or does not follow its schema.
    """
    name = name or path
    try:
        for _ in range(LOOKS):
            with open_regular(path) as file:
                written = file.read(MOST_MANIFEST_BYTES + 1)
            if len(written) > MOST_MANIFEST_BYTES:
                raise BundleError(f"{name}: has more than {MOST_MANIFEST_BYTES >> 20} MiB; {again}")
            if recorded(written):
                break
            time.sleep(0.01)
        else:
            raise BundleError(f"{name}: was changed after it was written; {again}, or {otherwise}")
        content = parse_json(written.decode("utf-8"))
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror}); {again}") from None
    except ValueError as error:
        raise BundleError(f"{name}: is not JSON ({error}); {again}") from None
    found = content.get("schema_version") if isinstance(content, dict) else None
    if type(found) is not int:
        raise BundleError(f"{name}: has no schema_version, which is a whole number; {again}")
    if found > version:
        raise BundleError(f"{name}: has schema {found}, this starflow reads {version}; {newer}")
    try:
        return validate(content)
    except ValidationError as error:
        raise BundleError(f"{name}: {one_line(error, known_fields)}; {again}") from None
