"""The ways in which TensorRT runs the networks beside the flow: as its parser understood them, and as engines on a GPU.

Both are compared with ONNX Runtime in float32, on what a sampler gives the networks. Each graph is the one that `starflow build`
makes an engine from, so products that are float16 there are float16 here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Never

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.network_inputs import network_runs
from starflow.export.tensorrt.network_precision import NetworkChoices
from starflow.export.verification.agreement import Measurement, compare_one
from starflow.export.verification.routes import BackendName, NotRun
from starflow.export.verification.subject import Part
from starflow.export.verification.tolerances import Kind, Precision, Tolerances
from starflow.runtime.backends.tensorrt.flavour import load_flavour
from starflow.runtime.backends.tensorrt.networks import open_tensorrt_networks
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.named_network import NamedNetwork, NetworkName, networks_of
from starflow.runtime.bundle.network_build import read_network_builds
from starflow.runtime.plain.errors import BackendError

KINDS: dict[NetworkName, Kind] = {
    "text-encoder": "text",
    "encoder": "pixels",
    "decoder": "pixels",
    "noisy-decoder": "pixels",
    "score": "denoise",
    "learned": "denoise",
    "student": "student",
}


@dataclass(frozen=True)
class Found:
    """Outputs of one network for some runs, those expected, and what its products compute in."""

    expected: Sequence[NDArray]
    outputs: Sequence[NDArray]
    precision: Precision


@dataclass(frozen=True)
class NetworkRoute:
    """One way to run one network."""

    name: str  # backend and network, as reports call it
    network: NamedNetwork
    run: Callable[[], Found]

    def compare(self, tolerances: Tolerances) -> Measurement:
        """Run the network, and compare what it makes.

        Raises:
            StarflowError: it cannot be run.
        """
        found, kind = self.run(), KINDS[self.network.name]
        expected, outputs = (_tokens(np.concatenate(values)) for values in (found.expected, found.outputs))
        named = {"text": Part("the features"), "student": Part("the tokens")}
        part = named.get(kind, Part("the image", unit="pixel"))
        return compare_one(self.name, kind, part, expected, outputs, tolerances[found.precision, kind])


def find_network_routes(bundle: Bundle, backends: Sequence[BackendName]) -> tuple[list[NetworkRoute], list[NotRun]]:
    """The routes of all networks of a bundle at one place through some backends."""
    found = [each for name in backends if name in _FINDERS for each in _FINDERS[name](bundle)]
    routes = [each for each in found if isinstance(each, NetworkRoute)]
    return routes, [each for each in found if isinstance(each, NotRun)]


def _tokens(values: NDArray) -> NDArray:
    """Features [N, T, W] and tokens [N, T, D] as they are, images [N, C, H, W] as [N, H W, C]."""
    if values.ndim == 3:
        return values
    return np.ascontiguousarray(values.reshape(*values.shape[:2], -1).transpose(0, 2, 1))


def _interpreted(bundle: Bundle) -> Iterator[NetworkRoute | NotRun]:
    networks = list(networks_of(bundle.manifest))
    if not networks:
        return
    try:
        choices = NetworkChoices(bundle, load_flavour("tensorrt-rtx"))
    except BackendError:
        return  # `find_routes` says why nothing of it runs

    def run(network: NamedNetwork) -> Found:
        choice = choices.of(network)
        return Found(choices.expected(network), choice.outputs, "fp16" if choice.narrow else "fp32")

    for network in networks:
        yield NetworkRoute(f"network {network.words}", network, partial(run, network))


def _engines(bundle: Bundle) -> Iterator[NetworkRoute | NotRun]:
    """The engines on a GPU, given what the interpreter would be given."""
    built = {engine.graph: engine for record in read_network_builds(bundle) for engine in record.engines}
    networks = [network for network in networks_of(bundle.manifest) if network.spec.file.path in built]
    if not networks:
        return

    def run(network: NamedNetwork) -> Found:
        runs = recorded()[network.spec.file.path]
        with closing(open_tensorrt_networks(bundle, None, _refuse)) as sessions:
            outputs = [sessions.run(network.spec, each.inputs) for each in runs]
        narrow = built[network.spec.file.path].precision != "fp32"
        return Found([each.output for each in runs], outputs, "fp16" if narrow else "fp32")

    recorded = cache(lambda: network_runs(bundle))
    for network in networks:
        name = f"tensorrt {network.words}"
        try:
            with closing(open_tensorrt_networks(bundle, None, _refuse)) as sessions:
                if not sessions.has_engine(network.spec):
                    yield NotRun(name, "its engine is for another GPU or another TensorRT")
                    continue
        except BackendError as error:
            yield NotRun(name, str(error).partition(";")[0])
            continue
        yield NetworkRoute(name, network, partial(run, network))


def _refuse() -> Never:
    raise AssertionError("only networks that have engines are run")


_FINDERS: dict[BackendName, Callable[[Bundle], Iterator[NetworkRoute | NotRun]]] = {
    "network": _interpreted,
    "tensorrt": _engines,
}
