"""The base of every file format's parts, how a user's file of one is read, and Pydantic's findings in one line."""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from starflow.runtime.plain.errors import UsageError

Read = TypeVar("Read")


class Part(BaseModel):
    """A frozen part of a file whose schema is published; unknown fields are refused."""

    # Validators are built when a file is first read, not when the runtime is imported.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def one_line(error: ValidationError, known_fields: tuple[str, ...] = ()) -> str:
    """The first finding of `error` as `field: what (found ...)`; a misspelt field gets its nearest known name."""
    finding = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in finding["loc"]) or "value"
    if finding["type"] == "extra_forbidden":
        name = str(finding["loc"][-1])
        others = [known for known in known_fields if known != name]  # another kind of part may know it
        near = difflib.get_close_matches(name, others, n=1)
        return f"unknown field {field}" + (f"; did you mean {near[0]}?" if near else "")
    message = finding["msg"].removeprefix("Value error, ")
    more = error.error_count() - 1
    found = "" if finding["type"] in ("missing", "value_error") else f" (found {finding['input']!r:.60})"
    return f"{field}: {message}{found}" + (f"; and {more} more" if more else "")


def read_plan_file(
    path: Path, validate: Callable[[object], Read], *, instead: str, known_fields: tuple[str, ...]
) -> Read:
    """Read the JSON file of a plan.

    Args:
        path: The file.
        validate: Makes a plan of what it holds.
        instead: What may be named in place of a file, for the message.
        known_fields: Fields that a misspelt one may stand for.

    Raises:
        UsageError: it is missing, not JSON, or not such a plan.
    """
    try:
        return validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"plan {path}: cannot be read ({error.strerror}); name {instead} or a file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"plan {path}: is not JSON ({error})") from None
    except ValidationError as error:
        raise UsageError(f"plan {path}: {one_line(error, known_fields)}") from None
