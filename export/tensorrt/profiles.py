"""Optimisation profiles: the numbers of tokens one engine is tuned for."""

from collections.abc import Iterable

from starflow.runtime.bundle.build_record import Profile
from starflow.runtime.plain.errors import UsageError

# A step; a chunk of Jacobi iteration; the prefill of a text. A longer prefill takes several runs of the largest profile.
DEFAULT_TOKENS = (1, 16, 128)


def token_profiles(tokens: Iterable[int], longest: int) -> tuple[Profile, ...]:
    """One profile for a single step, then for every larger number n one of 1 to n tokens, tuned for n.

    Steps have a profile of their own, whatever is asked for: they are nearly all runs, and an engine of fixed shape is the
    leanest. Every further profile costs compiled code but no weights.

    Args:
        tokens: Numbers of tokens; those above `longest` count as `longest`.
        longest: Most tokens of one run of any graph.

    Raises:
        UsageError: a number is not positive.
    """
    asked = list(tokens)
    for number in asked:
        if number < 1:
            raise UsageError(f"--profile-tokens {number}: give numbers of tokens of at least 1, such as 1,16,128")
    largest = sorted({1, *(min(number, longest) for number in asked)})
    return tuple(Profile(minimum=1, optimum=number, maximum=number) for number in largest)
