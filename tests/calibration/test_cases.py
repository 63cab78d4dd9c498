"""The samples a calibration looks at: where their conditions come from."""

from pathlib import Path

import numpy as np
import pytest

from starflow.calibration.cases import draw_cases, read_conditions
from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.traces.case import CAPTIONS


def test_captions_become_conditions(captioned_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red apple\n\ntwo cats\nsun\n")
    bundle = Bundle.open(captioned_bundle)
    given = read_conditions(bundle, None, None, tmp_path / "captions.txt")
    assert given is not None and given.null is not None
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        expected = sampler.encode_captions(["a red apple", "two cats", "sun", ""])
    np.testing.assert_allclose(given.tokens, expected[:3], atol=1e-6)
    np.testing.assert_allclose(given.null, expected[3], atol=1e-6)
    cases = draw_cases(bundle, 3, 0, conditions=given)
    for case, order in ((cases.calibrate, [0, 1, 2, 0]), (cases.check, [1, 2, 0, 1])):  # in whole batches of two
        np.testing.assert_array_equal(case.condition, given.tokens[order])
        np.testing.assert_array_equal(case.null_condition, given.null)


def test_what_is_missing_is_named(captioned_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red apple\n")
    with pytest.raises(UsageError, match="captions, --captions-file FILE"):
        read_conditions(Bundle.open(captioned_bundle), None, None, None)
    with pytest.raises(UsageError, match="leave it out"):
        read_conditions(Bundle.open(tiny_bundle), None, None, tmp_path / "captions.txt")


def test_without_any_a_text_model_is_sampled_with_captions(captioned_bundle: Path) -> None:
    """Random features would be far from all it was trained on, where rounding errors may grow."""
    case = draw_cases(Bundle.open(captioned_bundle), 2, 0).calibrate
    assert case.condition is not None and case.null_condition is not None
    with Sampler.open(captioned_bundle, threads=1) as sampler:
        expected = sampler.encode_captions([*CAPTIONS[:2], ""])
    np.testing.assert_allclose(case.condition, expected[:2], atol=1e-6)
    np.testing.assert_allclose(case.null_condition, expected[2], atol=1e-6)
