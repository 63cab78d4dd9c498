"""A TensorRT logger that keeps what it is told, so that an error can quote the message that explains it."""

import re
from dataclasses import dataclass, field
from typing import Any

from starflow.runtime.backends.tensorrt.flavour import Flavour


@dataclass
class MessageLog:
    """What TensorRT said, in order.

    Attributes:
        logger: The `trt.ILogger` to hand to a builder or runtime; it must outlive them.
        entries: (severity, text) of everything at least as severe as asked for.
    """

    logger: Any = None
    entries: list[tuple[int, str]] = field(default_factory=list)
    error_severity: int = 1

    def last_error(self) -> str:
        """The last thing that went wrong, readable; "no reason given" if TensorRT said nothing."""
        errors = [text for severity, text in self.entries if severity <= self.error_severity]
        return next((text for text in map(readable, reversed(errors)) if text), "no reason given")


def message_log(flavour: Flavour, least: str = "WARNING") -> MessageLog:
    """A log of all messages of severity `least` and worse, a name such as `VERBOSE`."""
    severities = flavour.trt.ILogger.Severity
    threshold = int(getattr(severities, least))
    log = MessageLog(error_severity=int(severities.ERROR))
    keep = log.entries.append

    # TensorRT calls a subclass of its own module's ILogger, so the class cannot exist before a flavour is chosen.
    class Logger(flavour.trt.ILogger):  # type: ignore[name-defined]
        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= threshold:
                keep((int(severity), text))

    log.logger = Logger()
    return log


def readable(text: str) -> str:
    """TensorRT's message on one line, without what only its developers can use.

    On a machine without a GPU every message drags a second line about the missing driver behind it, and sources are named by
    paths of NVIDIA's build machine.
    """
    lines = [line for line in text.splitlines() if "Cuda Runtime" not in line]
    # The line that names the node again says nothing that the error does not know better.
    lines = [line for line in lines if not line.startswith("Invalid Node - ")] or lines
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"\s*In \w+ at /\S+:\d+", "", text)
    return re.sub(r"^\w+(::\w+)*: Error Code \d+: ", "", text).rstrip(".")
