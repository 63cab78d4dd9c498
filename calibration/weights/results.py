"""What a calibration of weights is asked for, and what it found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.weights.sample_error import SampleError
from starflow.calibration.weights.treatment import Product, WeightType
from starflow.runtime.bundle.manifest import Lowering, Variant

KEPT = "kept"  # a matrix in the source's type
SOURCE, PLAIN, ALL = "source", "plain rounding", "calibrated, all matrices"


@dataclass(frozen=True)
class WeightRequest:
    """What is asked for."""

    weights: WeightType
    budget: float = 0.005  # relative error of whole samples that is allowed
    # The lowerings to make variants of; None takes those whose source the bundle holds.
    lowerings: Sequence[Lowering] | None = None
    threads: int = 0  # threads of ONNX Runtime; 0 takes one per physical core
    # What shares a scale among activations of 8 bits on the CPU; None takes for each matrix what is faster on this machine.
    product: Product | None = None


@dataclass(frozen=True)
class MatrixResult:
    """One matrix after the calibration."""

    weight: str
    block: int
    shape: tuple[int, int]  # [out, in]
    treatment: str
    # Relative error of its product's outputs from its weights alone, in the smallest treatment: rounded plainly, and
    # calibrated.
    plain_output_error: float
    output_error: float
    # What it alone does to the samples in each treatment, predicted from what it does to its flow block.
    sample_errors: dict[str, float]
    bytes: int  # as it is stored now
    source_bytes: int  # as the source stores it


@dataclass(frozen=True)
class Measured:
    """One way to quantise all of the model, sampled."""

    what: str  # in words
    bytes: int  # of all weights a pass over every flow block reads
    error: SampleError


@dataclass(frozen=True)
class StudentResult:
    """What became of a student."""

    block: int  # its flow block
    matrices: dict[
        str, str
    ]  # the treatment of each matrix that a faster product takes; empty if none stays within the budget
    error: float | None  # of its tokens, relative to the student in float32; None if it stays as it is
    times: dict[int, float]  # by batch size, at the default shape: of a pass, over that in float32


@dataclass(frozen=True)
class WeightCalibration:
    """What came out for one variant."""

    variant: Variant  # the manifest's new entry
    request: WeightRequest  # what was asked for
    images: int  # images it was measured on
    guidance: float
    matrices: tuple[MatrixResult, ...]  # every matrix that could be quantised
    # The source, plain rounding, calibrated rounding of all matrices, and every choice that was tried; the last one
    # was taken.
    measured: tuple[Measured, ...]
    # Least bytes for an error, as predicted from matrices measured one by one: pairs of error and bytes.
    frontier: tuple[tuple[float, int], ...]
    samples: dict[str, NDArray[np.float32]]  # of the source, of plain rounding and of the result: [N, C, H, W]
    students: tuple[StudentResult, ...] = ()  # of the bundle, for the cpu lowering in 8 bits

    @property
    def chosen(self) -> Measured:
        return self.measured[-1]

    def measurement(self, what: str) -> Measured:
        """The first of that name."""
        return next(each for each in self.measured if each.what == what)
