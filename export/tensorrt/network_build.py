"""Builds the engines of the networks beside the flow, unless they are up to date, and records what they are."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from starflow.export.tensorrt.build import BuildRequest, chosen_variants, now, share
from starflow.export.tensorrt.build_monitor import PARTS
from starflow.export.tensorrt.build_resources import NETWORK, check_room
from starflow.export.tensorrt.engine_builder import build_engine
from starflow.export.tensorrt.engine_folder import EngineFolder
from starflow.export.tensorrt.kernel_list import KernelCount, kernel_counts
from starflow.export.tensorrt.network_precision import NetworkChoices
from starflow.export.tensorrt.parse import parse_graph
from starflow.export.tensorrt.parser_guard import NETWORK_INDEX_RANK, guard_graph
from starflow.export.tensorrt.target import Target
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import Place
from starflow.runtime.bundle.named_network import NamedNetwork, NetworkName, networks_of
from starflow.runtime.bundle.network_build import (
    RECORD,
    NetworkBuildConfig,
    NetworkBuildRecord,
    NetworkEngineSpec,
    networks_folder,
    read_network_build,
)
from starflow.runtime.networks.caption_encoder import load_tokenizer
from starflow.runtime.networks.denoising import DENOISERS, choose_denoiser
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.progress import Report, no_report


@dataclass(frozen=True)
class BuiltNetwork:
    """What became of the engine of one network; `seconds` is None where it was there already."""

    place: Place  # the first one that it was built for
    network: NamedNetwork
    spec: NetworkEngineSpec
    seconds: float | None
    kernels: tuple[KernelCount, ...] = ()


def build_networks(
    bundle: Bundle,
    wanted: Sequence[tuple[Bundle, NamedNetwork]],
    target: Target,
    request: BuildRequest,
    *,
    report: Report = no_report,
    waiting: Callable[[], None] = lambda: None,
) -> list[BuiltNetwork]:
    """Build the engines of a bundle's networks beside the flow, each once.

    Engines of other networks stay, if they were built by the same release with the same options. What was finished before an
    error, Ctrl-C or a crash is recorded.

    Args:
        bundle: The bundle with all its shapes and batch sizes.
        wanted: What `wanted_networks` says.
        request: How to build; profiles do not matter, since shapes are static.
        report, waiting: As in `build_bundle`.

    Raises:
        UsageError: the bundle cannot be written.
        BundleError: the bundle is damaged.
        ExportError: a graph cannot be built, or memory or disk do not suffice.
        BackendError: a network produced NaN or infinity when its precision was chosen.
    """
    if not wanted:
        return []
    config = NetworkBuildConfig(
        flavour=target.flavour.name,
        version=target.flavour.version,
        compute_capabilities=target.compute_capabilities,
        options=request.options,
    )
    built: list[BuiltNetwork] = []
    with bundle_lock(bundle.folder, "work", waiting):
        builder = _NetworkBuilder(bundle, target, config, request)
        for place, network in wanted:
            built.append(builder.engine(place, network, share(report, len(built), len(wanted), network.words)))
        builder.tidy()
    return built


def wanted_networks(
    bundle: Bundle, places: Sequence[Bundle], request: BuildRequest, names: Sequence[NetworkName] | None
) -> list[tuple[Bundle, NamedNetwork]]:
    """The networks to build, each once, with the bundle at the first place it is found at.

    Args:
        bundle: The bundle with all its shapes and batch sizes.
        places: The bundle at each shape and batch size to build for.
        request: Which variants are built: of the denoisers, those that run with them are taken.
        names: Which networks; None takes all that the bundle has.

    Raises:
        UsageError: the bundle has no such network, or the tokenizers library, which a choice of precision needs, is not installed.
        BundleError: the tokenizer cannot be read.
    """
    found: dict[str, tuple[Bundle, NamedNetwork]] = {}
    for place in places:
        variants = chosen_variants(place, request.variants)
        denoisers = [
            choose_denoiser(place.manifest, kind, variant).network
            for kind in DENOISERS
            if any(spec.kind == kind for spec in place.manifest.denoisers)
            for variant in variants
        ]
        for network in networks_of(place.manifest):
            if network.precision is None or network.spec in denoisers:
                found.setdefault(network.spec.file.path, (place, network))
    if found and bundle.manifest.text:
        load_tokenizer(bundle, bundle.manifest.text)  # captions are what precisions are chosen on
    has = list(dict.fromkeys(network.name for _, network in found.values()))
    for name in names or ():
        if name not in has:
            raise UsageError(f"--networks {name}: {bundle.root} has {', '.join(has) or 'no networks beside the flow'}")
    return [each for each in found.values() if names is None or each[1].name in names]


class _NetworkBuilder:
    """Builds engines one after the other, and says in `networks.json` after each what they are."""

    def __init__(self, bundle: Bundle, target: Target, config: NetworkBuildConfig, request: BuildRequest) -> None:
        self._bundle, self._flavour, self._config = bundle, target.flavour, config
        self._list_kernels, self._force = request.kernels, request.force or request.kernels
        self._folder = EngineFolder(bundle, networks_folder(bundle, config.target), RECORD)
        current = {
            (config.key(network.spec), network.spec.file.path)
            for place in bundle.places()
            for network in networks_of(place.manifest)
        }
        self._engines: dict[str, NetworkEngineSpec] = {}  # by the path of the graph
        with suppress(BundleError):  # there is no record to rely on
            recorded = read_network_build(self._folder.record).engines
            self._engines = {each.graph: each for each in recorded if (each.key, each.graph) in current}
        self._choices: dict[tuple[int, int] | None, NetworkChoices] = {}  # by shape
        self._checked: set[str] = set()

    def engine(self, place: Bundle, network: NamedNetwork, report: Report) -> BuiltNetwork:
        """Build the engine of a network, unless it is there."""
        report(0, PARTS)
        path = network.spec.file.path
        present = None if self._force else self._engines.get(path)
        if present and self._folder.is_whole(present.file):
            report(PARTS, PARTS)
            return BuiltNetwork(place.place, network, present, None)
        started = time.perf_counter()
        spec, kernels = self._build(place, network, report)
        self._engines[path] = spec
        record = NetworkBuildRecord(
            schema_version=1, **dict(self._config), engines=tuple(self._engines.values()), created=now()
        )
        self._folder.write(record.model_dump_json(indent=1))
        report(PARTS, PARTS)
        return BuiltNetwork(place.place, network, spec, time.perf_counter() - started, kernels)

    def tidy(self) -> None:
        """Remove the engines that `networks.json` does not name."""
        self._folder.tidy(engine.file for engine in self._engines.values())

    def _build(
        self, place: Bundle, network: NamedNetwork, report: Report
    ) -> tuple[NetworkEngineSpec, tuple[KernelCount, ...]]:
        for file in (network.spec.file, network.spec.weights):
            if file.path not in self._checked:
                self._folder.check_source(file)
                self._checked.add(file.path)
        source = place.path(network.spec.file)
        check_room(f"the {network.words}", network.spec.weight_bytes, self._folder.folder, NETWORK)
        guard_graph(source, index_rank=NETWORK_INDEX_RANK)
        report(0, PARTS, "choosing the precision")
        if place.shape not in self._choices:
            whole = self._bundle.at_shape(place.manifest.sizes[0] if place.manifest.sizes else None)
            smallest = whole.at_batch(whole.manifest.batch_sizes[-1])
            self._choices[place.shape] = NetworkChoices(smallest, self._flavour)
        choice = self._choices[place.shape].of(network)
        graph = choice.graph(source)
        key = self._config.key(network.spec)
        destination = self._folder.free_path(f"{network.name}-{key[:12]}")
        least = "VERBOSE" if self._list_kernels else "WARNING"
        parsed = parse_graph(self._flavour, source, model=graph.model, least=least)
        build_engine(parsed, self._config, (), destination, report, list_layers=self._list_kernels)
        kernels = kernel_counts([text for _, text in parsed.log.entries]) if self._list_kernels else ()
        file = self._folder.file(destination)
        spec = NetworkEngineSpec(
            graph=network.spec.file.path, precision=graph.precision, error=choice.error, file=file, key=key
        )
        return spec, kernels
