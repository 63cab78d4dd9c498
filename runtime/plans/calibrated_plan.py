"""What calibrated plans of both families have in common."""

from pydantic import Field

from starflow.runtime.plain.validation import Part


class CalibratedPlan(Part):
    """A plan for one backend and variant. Passes and times are for one batch of the exported size.

    Attributes:
        backend: Name of the backend it was calibrated on, see `Backend`.
        variant: Name of the variant it was calibrated with.
        budget: Largest error allowed.
        error: Measured error of finished samples, ||x - reference|| / ||reference||.
        images: Number of samples the error was measured on.
        guidance: Guidance weight of these samples.
        passes: Measured number of runs of a network, prefill not counted.
    """

    backend: str
    variant: str
    budget: float = Field(gt=0)
    error: float = Field(ge=0)
    images: int = Field(gt=0)
    guidance: float = Field(ge=0)
    passes: float = Field(gt=0)
    milliseconds: float = Field(gt=0)
