"""How fast kernels were on this GPU, kept from one build to the next, where TensorRT measures kernels at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.plain.atomic_write import atomic_file


@contextmanager
def timing_cache(flavour: Flavour, path: Path, settings: Any) -> Iterator[None]:
    """Let a builder configuration use the timing cache at `path`, and keep what a build has measured.

    A flavour that builds for named compute capabilities does so without a GPU and measures nothing: it has no cache.
    """
    if flavour.named_capabilities:
        yield
        return
    cache = settings.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if not cache or not settings.set_timing_cache(cache, False):  # damaged, or of another GPU or release
        cache = settings.create_timing_cache(b"")
        settings.set_timing_cache(cache, False)
    yield
    with atomic_file(path) as temporary:
        temporary.write_bytes(cache.serialize())
