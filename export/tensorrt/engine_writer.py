"""Writes an engine to disk as TensorRT hands it over, so that it is never in memory as a whole a second time."""

from typing import Any, BinaryIO

from starflow.runtime.backends.tensorrt.flavour import Flavour


def engine_writer(flavour: Flavour, file: BinaryIO) -> Any:
    """A `trt.IStreamWriter` that writes an engine into an open file; it must outlive the build.

    TensorRT takes no notice of a write that fails and calls the build a success, so the failure is kept in the writer's `error`,
    which is None otherwise. After an error nothing more is written.
    """

    # A subclass of this flavour's own class, so it cannot exist before a flavour is chosen.
    class EngineWriter(flavour.trt.IStreamWriter):  # type: ignore[name-defined]
        error: OSError | None = None

        def write(self, data: bytes) -> int:
            if self.error is None:
                try:
                    return file.write(data)
                except OSError as error:
                    self.error = error
            return 0

    return EngineWriter()
