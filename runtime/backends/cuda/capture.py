"""Runs as one CUDA graph, or, where that is refused, enqueued anew for every launch."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Protocol

from starflow.runtime.backends.cuda.device import CaptureRefusedError, Graph, Repeated


class Capture(Protocol):
    """Captures runs of an engine as one CUDA graph, in the runner's stream."""

    def __call__(
        self,
        count: int,
        runs_at: Sequence[dict[str, int]],
        resources: ExitStack,
        feed_back: Callable[[], None],
        *,
        conditioned: bool,
    ) -> Graph | Repeated:
        """Runs of S = `count` tokens, one after the other.

        If the work cannot be captured, every launch enqueues it anew, and a warning says why.

        Args:
            runs_at: The address of every input and output, for each run.
            resources: Takes the graph and what it needs, and frees them.
            feed_back: Adds the copies that prepare the next launch.
            conditioned: Whether a run may hold positions of the condition; only of interest where `steps_lack_condition`.
        """


def graph_or_repeated(
    record: Callable[[], Graph], work: Callable[[], None], what: str, resources: ExitStack, logger: logging.Logger
) -> Graph | Repeated:
    """What `record` captures, or `work`, whose launches give the same results; a warning says why.

    Args:
        record: Captures the work; CaptureRefusedError if that is refused.
        what: The runs, as the warning calls them.
        resources: Takes what is returned, and frees it.
        logger: Takes the warning.
    """
    try:
        return resources.enter_context(closing(record()))
    except CaptureRefusedError as refusal:
        logger.warning(
            "%s cannot be captured into a CUDA graph (%s); each is enqueued anew, "
            "which gives the same results and asks more of the host",
            what,
            str(refusal),  # whoever keeps the record shall not keep what the work holds with it
        )
        return resources.enter_context(closing(Repeated(work)))
