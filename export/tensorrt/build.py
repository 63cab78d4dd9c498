"""Builds the engines of a bundle, unless they are up to date, and records what they are."""

import datetime
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from starflow.export.tensorrt.build_monitor import PARTS
from starflow.export.tensorrt.build_resources import check_room
from starflow.export.tensorrt.engine_builder import begins_like_engine, build_engine
from starflow.export.tensorrt.engine_folder import EngineFolder
from starflow.export.tensorrt.kernel_list import KernelCount, kernel_counts
from starflow.export.tensorrt.parse import parse_graph
from starflow.export.tensorrt.parser_guard import guard_graph
from starflow.export.tensorrt.profiles import DEFAULT_TOKENS, token_profiles
from starflow.export.tensorrt.target import Target
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.bundle.build_record import (
    BuildConfig,
    BuildOptions,
    BuildRecord,
    EngineSpec,
    build_folder,
    read_build,
)
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec
from starflow.runtime.bundle.lock import bundle_lock
from starflow.runtime.bundle.manifest import Place, Variant
from starflow.runtime.plain.errors import BundleError, UsageError
from starflow.runtime.plain.progress import Report, no_report


@dataclass(frozen=True)
class BuildRequest:
    """What to build of a bundle."""

    variants: Sequence[str] | None = None  # names; None takes every portable variant of 16 bits
    options: BuildOptions = field(default_factory=BuildOptions)  # limits on the builder
    profile_tokens: Sequence[int] = DEFAULT_TOKENS  # numbers of tokens a run may have
    force: bool = False  # whether to build what is there and unchanged again
    kernels: bool = False  # whether to list the kernels; only a build can, so all engines are built again


@dataclass(frozen=True)
class BuiltEngine:
    """What became of one engine; `seconds` is None where it was there already.

    `kernels` has the figures of each optimisation profile, if they were asked for.
    """

    place: Place
    variant: str
    spec: EngineSpec
    weight_bytes: int
    seconds: float | None
    kernels: tuple[KernelCount, ...] = ()


def build_bundle(
    bundle: Bundle,
    target: Target,
    request: BuildRequest = BuildRequest(),
    *,
    report: Report = no_report,
    waiting: Callable[[], None] = lambda: None,
) -> list[BuiltEngine]:
    """Build a bundle's engines for a target.

    What was finished before an error, Ctrl-C or a crash is kept and found again by the next build. Until all engines of a
    variant are there, its `build.json` names the previous ones, which stay.

    `report` is told how far all of it is; `waiting` is called before waiting for another build of the bundle to end.

    Raises:
        UsageError: a variant cannot be built for the target, or the bundle cannot be written.
        BundleError: the bundle has no such variant, or is damaged.
        ExportError: a graph cannot be built, or memory or disk do not suffice.
    """
    variants = chosen_variants(bundle, request.variants)
    for variant in variants:
        target.check_variant(variant)
    longest = max(bundle.manifest.longest_run(graph.block) for graph in bundle.manifest.variants[0].graphs)
    profiles = token_profiles(request.profile_tokens, longest)
    total = sum(len(variant.graphs) for variant in variants)
    built: list[BuiltEngine] = []
    with bundle_lock(bundle.folder, "work", waiting):
        for variant in variants:
            config = BuildConfig(
                flavour=target.flavour.name,
                version=target.flavour.version,
                compute_capabilities=target.compute_capabilities,
                variant=variant.name,
                profiles=profiles,
                options=request.options,
            )
            builder = _VariantBuilder(bundle, target.flavour, variant, config, request)
            for graph in variant.graphs:
                what = f"{variant.name}, flow block {graph.block}"
                built.append(builder.engine(graph, share(report, len(built), total, what)))
            builder.finish([engine.spec for engine in built if engine.variant == variant.name])
    return built


def chosen_variants(bundle: Bundle, names: Sequence[str] | None) -> list[Variant]:
    """The variants of some names, or every portable variant of 16 bits; see `build_bundle` for the errors."""
    if names is not None:
        return [bundle.variant(name, "portable") for name in dict.fromkeys(names)]
    found = [each for each in bundle.manifest.variants if each.lowering == "portable" and each.precision != "fp32"]
    if not found:
        raise UsageError(f"{bundle.root}: has no portable 16-bit variant; export it with --precision fp16")
    return found


def share(report: Report, index: int, count: int, what: str) -> Report:
    """The report of the engine of number `index` of `count`."""

    def of_one(done: int, total: int, doing: str | None = None) -> None:
        report(index * total + done, count * total, f"{what}: {doing}" if doing else what)

    return of_one


class _VariantBuilder:
    """Builds the engines of one variant, and says in `build.json` what they are."""

    def __init__(
        self, bundle: Bundle, flavour: Flavour, variant: Variant, config: BuildConfig, request: BuildRequest
    ) -> None:
        self.bundle, self.flavour, self.variant, self.config = bundle, flavour, variant, config
        self.list_kernels, self.force = request.kernels, request.force or request.kernels
        self.folder = EngineFolder(bundle, build_folder(bundle, config.target, variant.name), "build.json")
        self.recorded: dict[str, EngineSpec] = {}  # the engines of the last build, by key
        with suppress(BundleError):  # there is no record to rely on
            self.recorded = {engine.key: engine for engine in read_build(self.folder.record).engines}
        self._weights_checked = False

    def engine(self, graph: GraphSpec, report: Report) -> BuiltEngine:
        """Build the engine of a graph, unless it is there."""
        key = self.config.key(self.bundle, graph.block)
        name = f"block{graph.block}-{key[:12]}"
        report(0, PARTS)
        file = None if self.force else self._present(self.folder.folder / f"{name}.engine", key)
        seconds = None
        kernels: tuple[KernelCount, ...] = ()
        if file is None:
            path = self.folder.free_path(name)
            started = time.perf_counter()
            messages = self._build(graph, path, report)
            kernels = kernel_counts(messages) if self.list_kernels else ()
            seconds = time.perf_counter() - started
            file = self.folder.file(path)
        report(PARTS, PARTS)
        spec = EngineSpec(block=graph.block, file=file, key=key)
        return BuiltEngine(self.bundle.place, self.variant.name, spec, graph.weight_bytes, seconds, kernels)

    def finish(self, engines: Sequence[EngineSpec]) -> None:
        """Write `build.json`, then remove what it does not name."""
        if self.recorded != {engine.key: engine for engine in engines}:
            record = BuildRecord(schema_version=1, **dict(self.config), engines=tuple(engines), created=now())
            self.folder.write(record.model_dump_json(indent=1))
        self.folder.tidy(engine.file for engine in engines)

    def _present(self, path: Path, key: str) -> FileSpec | None:
        """The engine of a key, if it is there and whole: the recorded one, or else that at `path`.

        One that no record names was finished by a build that never came to its end. It is whole, since it appeared whole.
        """
        recorded = self.recorded.get(key)
        if recorded:
            return recorded.file if self.folder.is_whole(recorded.file) else None
        if path.is_file() and begins_like_engine(self.flavour, path):
            return self.folder.file(path)
        return None

    def _build(self, graph: GraphSpec, path: Path, report: Report) -> list[str]:
        """Build an engine; what TensorRT said."""
        self.folder.check_source(graph.file)
        if not self._weights_checked:
            self.folder.check_source(self.variant.weights)
            self._weights_checked = True
        source = self.bundle.path(graph.file)
        check_room(f"flow block {graph.block}", graph.weight_bytes, self.folder.folder)
        guard_graph(source, graph.block)
        longest = self.bundle.manifest.longest_run(graph.block)
        profiles = [profile.within(longest) for profile in self.config.profiles]
        least = "VERBOSE" if self.list_kernels else "WARNING"
        parsed = parse_graph(self.flavour, source, graph.block, least=least)
        build_engine(parsed, self.config, profiles, path, report, list_layers=self.list_kernels)
        return [text for _, text in parsed.log.entries]


def now() -> str:
    """The time of a record, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
