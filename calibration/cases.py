"""The samples a calibration looks at, and the ones it is judged by."""

import dataclasses
from pathlib import Path

import numpy as np

from starflow.export.verification.trace import Case, draw_case
from starflow.runtime.bundle import Bundle
from starflow.runtime.commands.sample import load_array
from starflow.runtime.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Cases:
    """Noise and conditions, in whole batches.

    Attributes:
        calibrate: To calibrate on.
        check: To measure on: other noise, and other conditions as far as there are any.
    """

    calibrate: Case
    check: Case


def draw_cases(
    bundle: Bundle,
    images: int,
    seed: int,
    guidance: float | None = None,
    condition: Path | None = None,
    null_condition: Path | None = None,
) -> Cases:
    """Draw both.

    Args:
        bundle: The bundle.
        images: Of each, at least.
        seed: Of the first; the second has the next one.
        guidance: Weight; None takes 1 where the model takes it.
        condition: Condition tokens [N, m, width] in an .npy file, for models conditioned on features.
        null_condition: Null condition tokens [m, width], likewise.

    Raises:
        UsageError: a number is out of range, or the model wants condition tokens and there are none.
    """
    if images < 1 or seed < 0:
        raise UsageError(f"--images {images}, --seed {seed}: give at least one image and a seed of 0 or more")
    features = bundle.manifest.conditioning.kind == "features"
    if features and condition is None:
        raise UsageError(
            "this model is sampled with condition tokens: give some like those it will see, --condition FILE.npy"
        )
    if not features and (condition or null_condition):
        raise UsageError(f"--condition: this model's condition is {bundle.manifest.conditioning.kind}; leave it out")
    cases = [draw_case(bundle, images, seed + number, guidance) for number in range(2)]
    if condition is not None:
        given = load_array(condition)
        given = given[None] if given.ndim == 2 else given
        null = None if null_condition is None else load_array(null_condition)
        count = len(cases[0].noise)
        cases = [
            dataclasses.replace(
                case, condition=given[(np.arange(count) + number * count) % len(given)], null_condition=null
            )
            for number, case in enumerate(cases)
        ]
    return Cases(*cases)
