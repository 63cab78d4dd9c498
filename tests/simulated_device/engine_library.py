"""What a real engine file computes: its bytes are recognised, and the graph it was built from is parsed and interpreted."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.bundle.build_record import BuildRecord
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import fixed_shape

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # smallest, optimal and largest shape


@dataclass(frozen=True)
class KnownEngine:
    """An engine file whose origin is known.

    Attributes:
        digest: Of the file.
        size: Of the file, in bytes.
        graph: The ONNX graph it was built from.
        capabilities: What it was built for.
        profiles: For every optimisation profile, the range of each dynamic input.
        flavour: The real TensorRT, whose parser reads the graph.
    """

    digest: str
    size: int
    graph: Path
    capabilities: tuple[str, ...]
    profiles: tuple[dict[str, Range], ...]
    flavour: Flavour = field(repr=False)

    @cached_property
    def interpreter(self) -> NetworkInterpreter:
        """The parsed network, rounding where it does."""
        return NetworkInterpreter(parse_graph(self.flavour, self.graph), rounding=True)

    @cached_property
    def types(self) -> dict[str, object]:
        """TensorRT's type of each input and output."""
        network = self.interpreter.parsed.network
        tensors = [network.get_input(index) for index in range(network.num_inputs)]
        tensors += [network.get_output(index) for index in range(network.num_outputs)]
        return {tensor.name: tensor.dtype for tensor in tensors}

    @property
    def scratch_bytes(self) -> int:
        """Of no particular size, but different for every graph."""
        return 1024 * (1 + int(self.digest[:2], 16))


class EngineLibrary:
    """The engines a simulated device can run.

    Args:
        flavour: The real TensorRT.
    """

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self._known: dict[str, KnownEngine] = {}

    def add(self, bundle: Bundle, record: BuildRecord) -> None:
        """Learn the engines of a build."""
        variant = bundle.variant(record.variant, "portable")
        for spec in record.engines:
            graph = bundle.graph(variant, spec.block)
            content = (bundle.root / spec.file.path).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            dynamic = [each for each in graph.inputs if "S" in each.shape]
            profiles = tuple(
                {
                    each.name: (
                        fixed_shape(each, profile.minimum),
                        fixed_shape(each, profile.optimum),
                        fixed_shape(each, profile.maximum),
                    )
                    for each in dynamic
                }
                for profile in (each.within(bundle.manifest.longest_run(spec.block)) for each in record.profiles)
            )
            path = bundle.root / graph.file.path
            self._known[digest] = KnownEngine(
                digest, len(content), path, record.compute_capabilities, profiles, self.flavour
            )

    def find(self, content: bytes) -> KnownEngine | None:
        """The engine these bytes are, or None if they are not one."""
        return self._known.get(hashlib.sha256(content).hexdigest())
