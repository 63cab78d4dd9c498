"""What a client is told of an error: one sentence, never a traceback."""

import logging
import traceback

from starflow.runtime.plain.errors import StarflowError
from starflow.runtime.plain.printable import one_line

logger = logging.getLogger("starflow.serve")


def sentence(error: BaseException) -> str:
    """The sentence for a client; of an error that is a bug, the log gets where it arose."""
    if isinstance(error, StarflowError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("internal error at %s:%d: %s", last.filename, last.lineno, one_line(repr(error)))
    return "internal error; the server's log says where"
