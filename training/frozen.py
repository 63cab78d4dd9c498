"""What every configuration is: typed, checked and unchanging; and how a file of one is read."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.plain.json_text import read_json as read_json_file
from starflow.runtime.plain.validation import one_line


class Frozen(BaseModel):
    """A typed value that checks itself, refuses unknown fields and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Frozen)


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """Read a JSON file of one value; CheckpointError if it does not hold such a value."""
    try:
        return kind.model_validate(read_json_file(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy the folder again") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None
    except ValueError as error:  # of JSON, or of its text
        raise CheckpointError(f"{path}: is not JSON ({error}); copy the folder again") from None
