"""Runs as one CUDA graph, or, where that is refused, enqueued anew for every launch."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing

from starflow.runtime.backends.cuda.device import CaptureRefusedError, Graph, Repeated


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
