"""What a calibration of weights is asked for, and what it found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.weights.sample_error import SampleError
from starflow.calibration.weights.treatment import Lowering, WeightType
from starflow.runtime.bundle.manifest import Variant

KEPT = "kept"  # a matrix in the source's type
SOURCE, PLAIN, ALL = "source", "plain rounding", "calibrated, all matrices"


@dataclass(frozen=True)
class WeightRequest:
    """What is asked for.

    Attributes:
        budget: Relative error of whole samples that is allowed.
        lowerings: The lowerings to make variants of; None takes those whose source the bundle holds.
        threads: Threads of ONNX Runtime; 0 takes one per physical core.
    """

    weights: WeightType
    budget: float = 0.005
    lowerings: Sequence[Lowering] | None = None
    threads: int = 0


@dataclass(frozen=True)
class MatrixResult:
    """One matrix after the calibration.

    Attributes:
        shape: [out, in].
        plain_output_error, output_error: Relative error of its product's outputs from its weights alone, in the smallest
            treatment: rounded plainly, and calibrated.
        sample_errors: What it alone does to the samples in each treatment, predicted from what it does to its flow block.
        bytes: As it is stored now.
        source_bytes: As the source stores it.
    """

    weight: str
    block: int
    shape: tuple[int, int]
    treatment: str
    plain_output_error: float
    output_error: float
    sample_errors: dict[str, float]
    bytes: int
    source_bytes: int


@dataclass(frozen=True)
class Measured:
    """One way to quantise all of the model, sampled."""

    what: str  # in words
    bytes: int  # of all weights a pass over every flow block reads
    error: SampleError


@dataclass(frozen=True)
class WeightCalibration:
    """What came out for one variant.

    Attributes:
        variant: The manifest's new entry.
        request: What was asked for.
        images: Images it was measured on.
        matrices: Every matrix that could be quantised.
        measured: The source, plain rounding, calibrated rounding of all matrices, and every choice that was tried; the
            last one was taken.
        frontier: Least bytes for an error, as predicted from matrices measured one by one: pairs of error and bytes.
        samples: Of the source, of plain rounding and of the result: [N, C, H, W].
    """

    variant: Variant
    request: WeightRequest
    images: int
    guidance: float
    matrices: tuple[MatrixResult, ...]
    measured: tuple[Measured, ...]
    frontier: tuple[tuple[float, int], ...]
    samples: dict[str, NDArray[np.float32]]

    @property
    def chosen(self) -> Measured:
        return self.measured[-1]

    def measurement(self, what: str) -> Measured:
        """The first of that name."""
        return next(each for each in self.measured if each.what == what)
