"""How fast kernels were on this GPU, kept from one build to the next, where TensorRT measures kernels at all."""

from pathlib import Path
from typing import Any

from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.plain.atomic_write import atomic_file


class TimingCache:
    """The timing cache of a target.

    A flavour that builds for named compute capabilities does so without a GPU and measures nothing: it has none.
    """

    def __init__(self, flavour: Flavour, path: Path) -> None:
        self._path = path
        self._measures = not flavour.named_capabilities
        self._cache: Any = None

    def attach(self, settings: Any) -> None:
        """Let a builder configuration use the cache; one of another GPU or release starts empty."""
        if not self._measures:
            return
        content = self._path.read_bytes() if self._path.exists() else b""
        self._cache = settings.create_timing_cache(content) or settings.create_timing_cache(b"")
        if not settings.set_timing_cache(self._cache, False):
            self._cache = settings.create_timing_cache(b"")
            settings.set_timing_cache(self._cache, False)

    def save(self) -> None:
        """Keep what was measured."""
        if self._cache is not None:
            with atomic_file(self._path) as temporary:
                temporary.write_bytes(self._cache.serialize())
