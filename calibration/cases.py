"""The samples that a calibration measures, and those that it is judged by."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.networks.caption_encoder import encode_once
from starflow.runtime.plain.errors import NotFiniteError, UsageError
from starflow.runtime.plain.input_files import load_array, load_captions
from starflow.runtime.traces.case import Case, draw_case


@dataclasses.dataclass(frozen=True)
class Cases:
    """Noise and conditions, in whole batches."""

    calibrate: Case
    check: Case  # to measure on: other noise, and other conditions as far as there are any


@dataclasses.dataclass(frozen=True)
class GivenConditions:
    """What a model conditioned on features is sampled with."""

    tokens: NDArray[np.float32]  # condition tokens [N, m, width]
    null: NDArray[np.float32] | None  # null condition tokens [m, width], or None

    def in_turn(self, number: int, count: int) -> tuple[NDArray, NDArray | None]:
        """Those of the images of case `number`, [count, m, width], which go on where the case before ended; and null."""
        return self.tokens[(np.arange(count) + number * count) % len(self.tokens)], self.null


def read_conditions(
    bundle: Bundle, condition: Path | None, null_condition: Path | None, captions: Path | None
) -> GivenConditions | None:
    """Read what models conditioned on features need; None for the others.

    Args:
        condition: Condition tokens [N, m, width] or [m, width] in an .npy file.
        null_condition: Null condition tokens [m, width], likewise.
        captions: A text file with a caption a line, for a bundle with a text encoder.

    Raises:
        UsageError: the model wants conditions and there are none, or the other way round.
    """
    manifest = bundle.manifest
    if manifest.conditioning.kind != "features":
        if condition or null_condition or captions:
            raise UsageError(f"--condition: this model's condition is {manifest.conditioning.kind}; leave it out")
        return None
    if captions:
        return GivenConditions(*encode_once(bundle, load_captions(captions)))
    if condition is None:
        wanted = "captions, --captions-file FILE" if manifest.text else "condition tokens, --condition FILE.npy"
        raise UsageError(f"this model is sampled with conditions: give some like those it will see: {wanted}")
    given = load_array(condition)
    null = None if null_condition is None else load_array(null_condition)
    return GivenConditions(given[None] if given.ndim == 2 else given, null)


def draw_cases(
    bundle: Bundle, images: int, seed: int, guidance: float | None = None, conditions: GivenConditions | None = None
) -> Cases:
    """Draw both.

    Args:
        images: Of each, at least.
        seed: Of the first; the second has the next one.
        guidance: Weight; None takes 1 where the model takes it.
        conditions: See `read_conditions`; taken in turn.

    Raises:
        UsageError: a number is out of range.
    """
    if images < 1 or seed < 0:
        raise UsageError(f"--images {images}, --seed {seed}: give at least one image and a seed of 0 or more")
    cases = []
    for number in range(2):
        given = functools.partial(conditions.in_turn, number) if conditions else None
        cases.append(draw_case(bundle, images, seed + number, guidance, given))
    return Cases(*cases)


def check_finite(samples: NDArray, case: Case) -> None:
    """NotFiniteError if samples that others are to be compared with hold NaN or infinity."""
    if not np.isfinite(samples).all():
        raise NotFiniteError(
            f"samples with guidance {case.guidance:g} hold NaN or infinity, so nothing can be compared with them; "
            "give another --guidance"
        )
