"""Optimisation profiles from numbers of tokens."""

import pytest

from starflow.export.tensorrt.profiles import token_profiles
from starflow.runtime.plain.errors import UsageError


def bounds(tokens: tuple[int, ...], max_chunk: int) -> list[tuple[int, int, int]]:
    return [(p.minimum, p.optimum, p.maximum) for p in token_profiles(tokens, max_chunk)]


def test_a_step_has_a_profile_of_its_own() -> None:
    assert bounds((1, 16, 128), 1152) == [(1, 1, 1), (1, 16, 16), (1, 128, 128)]
    assert bounds((64,), 1152) == [(1, 1, 1), (1, 64, 64)]


def test_profiles_end_at_the_longest_run_and_none_stands_twice() -> None:
    assert bounds((1, 16, 128), 50) == [(1, 1, 1), (1, 16, 16), (1, 50, 50)]
    assert bounds((128, 1, 64, 16, 16), 16) == [(1, 1, 1), (1, 16, 16)]
    assert bounds((1, 16, 128), 1) == [(1, 1, 1)]


def test_no_tokens_is_no_profile() -> None:
    with pytest.raises(UsageError, match="--profile-tokens 0"):
        token_profiles((1, 0), 16)
