"""What every configuration is: typed, checked and unchanging."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A typed value that checks itself, refuses unknown fields and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
