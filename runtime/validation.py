"""The base of every file format's parts, and Pydantic's findings in one line."""

import difflib

from pydantic import BaseModel, ConfigDict, ValidationError


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
