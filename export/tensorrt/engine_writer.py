"""Writes an engine to disk as TensorRT hands it over, so that it is never in memory as a whole a second time."""

from typing import Any, BinaryIO

from starflow.runtime.backends.tensorrt.flavour import Flavour


class EngineWriter:
    """Writes an engine into an open file.

    TensorRT takes no notice of a write that fails and calls the build a success, so the failure is kept here.

    Args:
        flavour: The TensorRT that builds.
        file: Opened for writing.

    Attributes:
        interface: The `trt.IStreamWriter` to hand to the builder; it must outlive the build.
        error: What went wrong, or None. After an error nothing more is written.
    """

    def __init__(self, flavour: Flavour, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self.interface = _interface(flavour, self)

    def write(self, data: bytes) -> int:
        """Append a piece of the engine; return the number of bytes written."""
        if self.error is None:
            try:
                return self._file.write(data)
            except OSError as error:
                self.error = error
        return 0

    def flush(self) -> None:
        """Hand what is still buffered to the system."""
        if self.error is None:
            try:
                self._file.flush()
            except OSError as error:
                self.error = error


def _interface(flavour: Flavour, writer: EngineWriter) -> Any:
    # A subclass of this flavour's own class, so it cannot exist before a flavour is chosen.
    class Interface(flavour.trt.IStreamWriter):  # type: ignore[name-defined]
        def write(self, data: bytes) -> int:
            return writer.write(data)

    return Interface()
