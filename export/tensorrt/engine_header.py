"""Does a file begin like an engine? TensorRT RTX says so without loading it."""

from pathlib import Path

from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.backends.tensorrt.messages import message_log


def begins_like_engine(flavour: Flavour, path: Path) -> bool:
    """Whether a file begins like an engine of a flavour.

    Only `tensorrt_rtx` can be asked; of the other flavour any content will do. Without a driver it finds a foreign or
    damaged beginning (`MALFORMED_ENGINE`) and a file too short for a header, but calls every other engine invalid because there is
    no GPU; and an engine may well be for another GPU than this machine's. So nothing but a malformed header counts. Damage
    further on shows in the digest.
    """
    trt = flavour.trt
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return path.stat().st_size > 0
    log = message_log(flavour)
    runtime = trt.Runtime(log.logger)
    with path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    _, diagnostics = runtime.get_engine_validity(header)
    return not diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
