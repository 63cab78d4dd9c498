"""The base of every file format's parts, how a user's file of one is read, and what is wrong with one, in a line of our words."""

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.json_text import read_json

Read = TypeVar("Read")

# What was expected, by the type of Pydantic's finding or how that begins; braces take the finding's context.
EXPECTED = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_too_short": "text of {min_length} characters or more",
    "string_too_long": "text of {max_length} characters or less",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_": "text",
    "path_": "a path",
    "list_": "a list",
    "tuple_": "a list",
    "set_": "a list",
    "dict_": "named fields",
    "model_": "named fields",
    "mapping_": "named fields",
    "too_short": "{min_length} or more values",
    "too_long": "at most {max_length} values",
    "greater_than_equal": "{ge:,.12g} or more",
    "greater_than": "more than {gt:,.12g}",
    "less_than_equal": "{le:,.12g} or less",
    "less_than": "less than {lt:,.12g}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "union_tag_invalid": "{expected_tags}",
}
UNION_MEMBERS = {"int", "float", "str", "bool", "list", "dict", "none"}  # in a finding's path, but no fields


class Part(BaseModel):
    """A frozen part of a file whose schema is published; unknown fields are refused."""

    # Validators are built when a file is first read, not when the runtime is imported.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def one_line(error: ValidationError, known_fields: tuple[str, ...] = ()) -> str:
    """The first finding of `error` as `field: found ..., expected ...`; a misspelt field gets its nearest known name."""
    findings: dict[str, list[Mapping[str, Any]]] = {}
    for each in error.errors(include_url=False):
        findings.setdefault(_field(each), []).append(each)
    field, own = next(iter(findings.items()))
    first, more = own[0], f"; and {len(findings) - 1} more" if len(findings) > 1 else ""
    kind = first["type"]
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        others = [known for known in known_fields if known != name]  # another kind of part may know it
        near = difflib.get_close_matches(name, others, n=1)
        return f"unknown field {field}" + (f"; did you mean {near[0]}?" if near else "")
    if kind in ("missing", "union_tag_not_found"):
        return f"{field}: is missing{more}"
    if kind == "value_error":  # raised by a validator of ours
        return f"{field}: {first['msg'].removeprefix('Value error, ')}{more}"
    found = repr(first["ctx"]["tag"]) if kind == "union_tag_invalid" else _shown(first["input"])
    expected = " or ".join(dict.fromkeys(filter(None, map(_expected, own))))
    return f"{field}: found {found}, " + (f"expected {expected}" if expected else "which does not fit") + more


def _field(finding: Mapping[str, Any]) -> str:
    parts = [str(part) for part in finding["loc"] if part not in UNION_MEMBERS and "[" not in str(part)]
    if finding["type"].startswith("union_tag"):
        parts.append(finding["ctx"]["discriminator"].strip("'"))
    return ".".join(parts) or "value"


def _expected(finding: Mapping[str, Any]) -> str | None:
    kind, context = finding["type"], finding.get("ctx", {})
    form = next((form for start, form in EXPECTED.items() if kind.startswith(start)), None)
    if form is None:
        return None
    words = form.format_map(context)
    return f"one of {words}" if words.count("'") > 2 else words


def _shown(value: object) -> str:
    if isinstance(value, bool | None):
        return json.dumps(value)
    return f"{value!r:.60}"


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
        return validate(read_json(path))
    except OSError as error:
        raise UsageError(f"plan {path}: cannot be read ({error.strerror}); name {instead} or a file") from None
    except ValidationError as error:  # which is a ValueError, too
        raise UsageError(f"plan {path}: {one_line(error, known_fields)}") from None
    except ValueError as error:
        raise UsageError(f"plan {path}: is not JSON ({error})") from None
