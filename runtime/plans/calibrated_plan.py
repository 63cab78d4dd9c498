"""What the manifest says of every calibrated plan, whatever family of flows it is for."""

from pydantic import Field

from starflow.runtime.plain.validation import Part


class CalibratedPlan(Part):
    """A plan for one backend and variant. Every figure is for one batch of the exported size.

    Attributes:
        backend: What it was calibrated on, as a backend's `name` says it.
        variant: The variant it was calibrated with.
        budget: Largest error that was asked for.
        error: Measured error of whole samples, ||x - reference|| / ||reference||.
        images: How many samples the error was measured on.
        guidance: Guidance weight of these samples.
        passes: Runs of a network, prefill apart, as measured.
        milliseconds: Time as measured.
    """

    backend: str
    variant: str
    budget: float = Field(gt=0)
    error: float = Field(ge=0)
    images: int = Field(gt=0)
    guidance: float = Field(ge=0)
    passes: float = Field(gt=0)
    milliseconds: float = Field(gt=0)
