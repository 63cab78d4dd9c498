"""A TensorRT logger that keeps messages, so that an error can quote the one that explains it."""

import re
from typing import Any

from starflow.runtime.backends.tensorrt.flavour import Flavour


class MessageLog:
    """The messages of TensorRT in order, at least as severe as `least`, a name such as `VERBOSE`."""

    def __init__(self, flavour: Flavour, least: str = "WARNING") -> None:
        severities = flavour.trt.ILogger.Severity
        threshold, self._error = int(getattr(severities, least)), int(severities.ERROR)
        self.entries: list[tuple[int, str]] = []  # severity and text of every message that is kept
        keep = self.entries.append

        # TensorRT needs a subclass of the ILogger of its own module, so the class cannot exist before a flavour is chosen.
        class Logger(flavour.trt.ILogger):  # type: ignore[name-defined]
            def log(self, severity: Any, text: str) -> None:
                if int(severity) <= threshold:
                    keep((int(severity), text))

        self.logger: Any = Logger()  # for a builder or runtime, which it must outlive

    def last_error(self) -> str:
        """The last error in readable form, or "no reason given" if TensorRT gave none."""
        errors = [text for severity, text in self.entries if severity <= self._error]
        return next((text for text in map(readable, reversed(errors)) if text), "no reason given")


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
