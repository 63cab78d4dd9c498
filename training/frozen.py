"""What every configuration is: typed, checked and unchanging; and how a file of one is read."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.plain.validation import one_line


class Frozen(BaseModel):
    """A typed value that checks itself, refuses unknown fields and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Kind = TypeVar("Kind", bound=Frozen)


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """Read a JSON file of one value; CheckpointError if it does not hold such a value."""
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None
    except ValueError as error:  # of JSON, or of its text
        raise CheckpointError(f"{path}: is not JSON ({error}); copy the folder again") from None
