"""What a real engine file computes: its bytes are recognised, and the graph it was built from is parsed and interpreted."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from starflow.export.tensorrt.interpreter.interpreter import NetworkInterpreter
from starflow.export.tensorrt.network_precision import NetworkChoices
from starflow.export.tensorrt.parse import parse_graph
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.bundle.build_record import BuildRecord, Profile
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import TensorSpec, fixed_shape
from starflow.runtime.bundle.named_network import networks_of
from starflow.runtime.bundle.network_build import NetworkBuildRecord

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
        model: What the engine was built from, if it is not the graph as it is: computed in float16 in part.
    """

    digest: str
    size: int
    graph: Path
    capabilities: tuple[str, ...]
    profiles: tuple[dict[str, Range], ...]
    flavour: Flavour = field(repr=False)
    model: onnx.ModelProto | None = field(default=None, repr=False)

    @cached_property
    def interpreter(self) -> NetworkInterpreter:
        """The parsed network, rounding where it does."""
        return NetworkInterpreter(parse_graph(self.flavour, self.graph, model=self.model), rounding=True)

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


def _has_own_size(value: onnx.ValueInfoProto) -> bool:
    return any(size.dim_param not in ("", "S") for size in value.type.tensor_type.shape.dim)


def _range(spec: TensorSpec, profile: Profile, *, absent: bool) -> Range:
    counts = (0, 0, 0) if absent else (profile.minimum, profile.optimum, profile.maximum)
    smallest, optimal, largest = (fixed_shape(spec, count) for count in counts)
    return smallest, optimal, largest


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
            path = bundle.root / graph.file.path
            dynamic = [each for each in graph.inputs if "S" in each.shape]
            # As the engine was built: steps are given no condition if its number of tokens is a size of its own.
            own_sizes = {
                value.name for value in onnx.load(path, load_external_data=False).graph.input if _has_own_size(value)
            }
            several = len(record.profiles) > 1
            profiles = tuple(
                {
                    each.name: _range(each, profile, absent=index == 0 and several and each.name in own_sizes)
                    for each in dynamic
                }
                for index, profile in enumerate(
                    each.within(bundle.manifest.longest_run(spec.block)) for each in record.profiles
                )
            )
            self._known[digest] = KnownEngine(
                digest, len(content), path, record.compute_capabilities, profiles, self.flavour
            )

    def add_networks(self, bundle: Bundle, record: NetworkBuildRecord) -> None:
        """Learn the engines of a bundle's networks beside the flow."""
        for place in bundle.places():
            choices = NetworkChoices(place, self.flavour)
            for network in networks_of(place.manifest):
                for spec in record.engines:
                    if spec.graph == network.spec.file.path:
                        content = (bundle.root / spec.file.path).read_bytes()
                        path = bundle.root / spec.graph
                        built = choices.of(network).graph(path)
                        assert built.precision == spec.precision
                        digest = hashlib.sha256(content).hexdigest()
                        self._known[digest] = KnownEngine(
                            digest, len(content), path, record.compute_capabilities, ({},), self.flavour, built.model
                        )

    def find(self, content: bytes) -> KnownEngine | None:
        """The engine these bytes are, or None if they are not one."""
        return self._known.get(hashlib.sha256(content).hexdigest())
