"""The number of threads a user asks for."""

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.limits import MOST_THREADS


def check_threads(threads: int) -> None:
    """See that a number of threads can be started; 0 leaves the choice open.

    Raises:
        UsageError: it is negative, or larger than any machine needs.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise UsageError(
            f"threads {threads}: give a number from 1 to {MOST_THREADS}, or 0 to measure whether one or all cores are faster"
        )
