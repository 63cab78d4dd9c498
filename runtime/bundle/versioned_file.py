"""JSON files of a bundle that state the version of their schema."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from starflow.runtime.bundle.sealed_text import is_sealed
from starflow.runtime.plain.errors import BundleError
from starflow.runtime.plain.validation import one_line

Read = TypeVar("Read")

MOST_BYTES = (
    64 << 20
)  # a manifest has a few hundred bytes for each input of each graph: 2 MiB for 48 blocks of 24 layers


def read_versioned(
    path: Path,
    validate: Callable[[Any], Read],
    version: int,
    *,
    again: str,
    newer: str,
    known_fields: tuple[str, ...],
    name: Path | None = None,
    digest: str | None = None,
) -> Read:
    """Read a JSON file with a `schema_version`.

    Args:
        validate: Turns the content of the file into what it describes.
        version: Newest schema that can be read.
        again: What mends a damaged file.
        newer: What to do about a newer schema.
        known_fields: Fields that a misspelt one may stand for.
        name: The name of the file in messages, if it is another one.
        digest: Field with the digest of the file, see `sealed_text`. A file without it is not checked.

    Raises:
        BundleError: the file cannot be read, is not JSON, has a newer schema, was changed, or does not follow its schema.
    """
    name = name or path
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BundleError(f"{name}: has more than {MOST_BYTES >> 20} MiB, so it is not what was written; {again}")
        text = path.read_bytes().decode("utf-8")  # line ends as they are: they are part of the digest
        content = json.loads(text)
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror}); {again}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise BundleError(f"{name}: is not JSON ({error}); {again}") from None
    fields = content if isinstance(content, dict) else {}
    found, stated = fields.get("schema_version"), fields.get(digest or "")
    if type(found) is not int:
        raise BundleError(f"{name}: has no schema_version, which is a whole number; {again}")
    if found > version:
        raise BundleError(f"{name}: has schema {found}, this starflow reads {version}; {newer}")
    if isinstance(stated, str) and not is_sealed(text, stated):
        raise BundleError(
            f"{name}: was changed after it was written; {again}, or take {digest} out to open it as it is"
        )
    try:
        return validate(content)
    except ValidationError as error:
        raise BundleError(f"{name}: {one_line(error, known_fields)}; {again}") from None
