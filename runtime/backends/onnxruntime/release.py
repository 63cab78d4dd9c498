"""Which release of ONNX Runtime a variant needs."""

import re

import onnxruntime

from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.errors import BackendError

OLDEST = (1, 25)  # the first with every operator of the graphs (opset 24)
OLDEST_BYTE_CACHES = (1, 27)  # before it, GroupQueryAttention takes no caches of 8 bits


def check_release(variant: Variant) -> None:
    """See that the installed ONNX Runtime runs a variant.

    Raises:
        BackendError: it is too old.
    """
    caches = {spec.dtype for graph in variant.graphs for spec in graph.inputs if spec.role == "cache"}
    least = OLDEST_BYTE_CACHES if caches & {"int8", "uint8"} else OLDEST
    found = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if found < least:
        raise BackendError(
            f"variant {variant.name} needs ONNX Runtime {least[0]}.{least[1]} or newer, this is {onnxruntime.__version__}; "
            "install a newer one: pip install --upgrade onnxruntime, or onnxruntime-gpu if that is the build"
        )
