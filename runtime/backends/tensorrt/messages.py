"""A TensorRT logger that keeps messages, so that an error can quote the one that explains it."""

import re
from dataclasses import dataclass, field
from typing import Any

from starflow.runtime.backends.tensorrt.flavour import Flavour


@dataclass
class MessageLog:
    """The messages of TensorRT, in order."""

    logger: Any = None  # the `trt.ILogger` for a builder or runtime, which it must outlive
    # (severity, text) of every message that is kept.
    entries: list[tuple[int, str]] = field(default_factory=list)
    error_severity: int = 1

    def last_error(self) -> str:
        """The last error in readable form, or "no reason given" if TensorRT gave none."""
        errors = [text for severity, text in self.entries if severity <= self.error_severity]
        return next((text for text in map(readable, reversed(errors)) if text), "no reason given")


def message_log(flavour: Flavour, least: str = "WARNING") -> MessageLog:
    """A log of all messages at least as severe as `least`, a name such as `VERBOSE`."""
    severities = flavour.trt.ILogger.Severity
    threshold = int(getattr(severities, least))
    log = MessageLog(error_severity=int(severities.ERROR))
    keep = log.entries.append

    # TensorRT needs a subclass of the ILogger of its own module, so the class cannot exist before a flavour is chosen.
    class Logger(flavour.trt.ILogger):  # type: ignore[name-defined]
        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= threshold:
                keep((int(severity), text))

    log.logger = Logger()
    return log


def readable(text: str) -> str:
    """A TensorRT message on one line, without the parts that only its developers can use.

    On a machine without a GPU every message has a second line about the missing driver. Messages also name source files by their
    paths on NVIDIA's build machine.
    """
    lines = [line for line in text.splitlines() if "Cuda Runtime" not in line]
    # The line that names the node once more adds nothing to the error.
    lines = [line for line in lines if not line.startswith("Invalid Node - ")] or lines
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"\s*In \w+ at /\S+:\d+", "", text)
    return re.sub(r"^\w+(::\w+)*: Error Code \d+: ", "", text).rstrip(".")
