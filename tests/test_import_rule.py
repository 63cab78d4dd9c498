"""Who may import whom: a table of layers for every package, and no cycle of files."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

# From the bottom up. A module imports from its own room and from rooms in rows above its own, never from a room in the
# same row or below. A room is a folder or a file; the longest name that fits a module counts.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "runtime": (
        ("runtime.plain",),
        ("runtime.ode", "runtime.reports"),
        ("runtime.plans",),
        ("runtime.bundle",),
        ("runtime.backends.block_runner", "runtime.backends.continuous_runner", "runtime.backends.memory_bandwidth"),
        ("runtime.backends.array_block_runner", "runtime.backends.base", "runtime.backends.cuda"),
        ("runtime.backends.onnxruntime", "runtime.backends.tensorrt"),
        ("runtime.backends",),
        ("runtime.conditions",),
        ("runtime.family", "runtime.networks"),
        ("runtime.autoregressive", "runtime.continuous"),
        ("runtime.families",),
        ("runtime.normal_numbers",),
        ("runtime.noise",),
        ("runtime.batch_loops",),
        ("runtime.sampler",),
        ("runtime.sampler_pool",),
        ("runtime.traces", "runtime.diagnostics", "runtime.serve", "runtime.pipeline", "runtime.generation"),
        ("runtime.hub",),
        ("runtime.commands",),
        ("runtime",),
    ),
    "training": (
        ("training.frozen", "training.flow", "training.points", "training.random_streams", "training.yaml_text"),
        ("training.layers", "training.objective", "training.state_check"),
        ("training.autoregressive", "training.continuous", "training.tensor_file"),
        ("training.config", "training.autoencoder.config"),
        ("training.families", "training.text"),
        (
            "training.published",
            "training.autoencoder",
            "training.data.augmentation",
            "training.data.shape",
            "training.data.source",
        ),
        ("training.checkpoint", "training.students.config"),
        ("training.start",),
        ("training.adapters", "training.recipe"),
        ("training.data",),
        ("training.students",),
        ("training.runs", "training.autoencoder.latents"),
        ("training.autoencoder.trainer", "training.students.trainer"),
        ("training.trainer",),
        ("training.proposal",),
        ("training.commands",),
        ("training",),
    ),
    "export": (
        ("export.onnx_graph", "export.precision", "export.graph_size"),
        ("export.activations", "export.bundle_folder"),
        ("export.networks",),
        ("export.export_options", "export.tensorrt"),
        ("export.flow_family", "export.verification"),
        ("export.autoregressive", "export.continuous", "export.bundle_writer"),
        ("export.exporter",),
        ("export.commands",),
        ("export",),
    ),
    "calibration": (
        ("calibration.budget", "calibration.cases", "calibration.frechet", "calibration.inverted_data"),
        ("calibration.distribution",),
        ("calibration.weights", "calibration.plans", "calibration.students"),
        ("calibration.commands",),
        ("calibration",),
    ),
}

# Rooms of other packages that a package may import, beside its own.
OTHERS: dict[str, tuple[str, ...]] = {
    "runtime": (),
    "training": ("runtime.plain", "runtime.plans"),
    "export": ("runtime", "training"),
    "calibration": ("runtime", "training", "export"),
}

# Packages the base install does not bring and the runtime must do without.
NOT_IN_RUNTIME = (
    *("torch", "torchvision", "onnx", "onnxscript", "onnx_ir"),
    *("sklearn", "yaml", "tensorboard", "transformers", "diffusers"),
)


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def imports_of(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of everything `source` imports, wherever it stands in the code.

    `from a.b import c` yields `a.b.c`, which names a module or something in one.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = module.split(".")
                kept = parents[: len(parents) - node.level + is_package]
                origin = ".".join([*kept, origin]).rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def row_of(name: str) -> tuple[int, str] | None:
    """The row of a name of starflow, counted from the bottom, and its room; None where its package has no layers."""
    layers = LAYERS.get(name.partition(".")[0], ())
    found = [(len(room), row, room) for row, rooms in enumerate(layers) for room in rooms if within(name, (room,))]
    return max(found)[1:] if found else None


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module, named without `starflow.`, imports against the rule."""
    package = module.partition(".")[0]
    own = row_of(module)
    found = []
    for line, name in imports_of(source, f"starflow.{module}", is_package):
        wrong = package == "runtime" and within(name, NOT_IN_RUNTIME)
        wrong |= within(module, ("runtime.plain",)) and within(name, ("onnxruntime",))
        if within(name, ("starflow",)):
            inner = name.removeprefix("starflow.")
            if inner.partition(".")[0] != package:
                wrong |= not within(inner, OTHERS[package])
            elif own is not None:
                other = row_of(inner)
                assert other is not None
                wrong |= own[1] != other[1] and own[0] <= other[0]
        if wrong:
            found.append(f"{module}:{line} imports {name}")
    return found


@cache
def sources(repository: Path) -> Mapping[str, tuple[str, bool]]:
    """The source of every module by its name without `starflow.`, and whether it is a package."""
    found = {}
    for package in OTHERS:
        for file in sorted((repository / package).rglob("*.py")):
            parts = file.relative_to(repository).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            found[".".join(parts[:-1] if is_package else parts)] = file.read_text(encoding="utf-8"), is_package
    return found


@pytest.mark.parametrize("package", OTHERS)
def test_a_package_imports_only_what_the_layers_allow(repository: Path, package: str) -> None:
    own = {module: source for module, source in sources(repository).items() if within(module, (package,))}
    assert own, f"{package}/ holds no Python"
    assert [
        offence for module, (source, is_package) in own.items() for offence in offences(source, module, is_package)
    ] == []


@pytest.mark.parametrize("package", LAYERS)
def test_every_room_of_the_table_exists_and_holds_every_module(repository: Path, package: str) -> None:
    modules = [module for module in sources(repository) if within(module, (package,))]
    for room in (room for row in LAYERS[package] for room in row):
        assert room in modules, f"{room} is in the table, and no such folder or file exists"
    assert [module for module in modules if row_of(module) is None] == []


def file_graph(modules: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which files each file imports, TYPE_CHECKING and function-level imports included."""
    graph = {}
    for module, (source, is_package) in modules.items():
        names = (name.removeprefix("starflow.") for _, name in imports_of(source, f"starflow.{module}", is_package))
        targets = (name if name in modules else name.rpartition(".")[0] for name in names)
        graph[module] = {target for target in targets if target in modules} - {module}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> set[str]:
    """Modules in or between circles: what is left when ends are taken away, again and again, from either side."""
    left = {module: set(targets) for module, targets in graph.items()}
    while True:
        imported = set().union(*left.values())
        ends = {module for module, targets in left.items() if not targets or module not in imported}
        if not ends:
            return set(left)
        left = {module: targets - ends for module, targets in left.items() if module not in ends}


def test_files_do_not_import_each_other_in_a_circle(repository: Path) -> None:
    assert cycles(file_graph(sources(repository))) == set()


def test_a_circle_is_seen_wherever_the_import_stands() -> None:
    late = "def run():\n    from starflow.runtime.two import two"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from starflow.runtime.one import One"
    modules = {"runtime.one": (late, False), "runtime.two": (typed, False), "runtime.three": ("import os", False)}
    assert cycles(file_graph(modules)) == {"runtime.one", "runtime.two"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runtime.sampler", "import torch"),
        ("runtime.sampler", "def late():\n    from torch.nn import functional"),
        ("runtime.diagnostics.doctor", "import onnx.helper"),
        ("runtime.sampler", "from starflow import export"),
        ("runtime.sampler", "from ..training import model"),
        ("runtime.plain.errors", "import onnxruntime"),
        ("runtime.plain.errors", "from starflow.runtime.sampler import Sampler"),
        ("runtime.bundle.manifest", "from starflow.runtime.backends.base import Backend"),
        ("runtime.backends.cuda.device", "from starflow.runtime.backends.tensorrt import engine"),
        ("runtime.backends.onnxruntime.backend", "from starflow.runtime.backends.choice import open_backend"),
        ("runtime.continuous.loop", "from starflow.runtime.autoregressive.tokens import patchify"),
        ("training.trainer", "from starflow.runtime import Sampler"),
        ("training.trainer", "from starflow.runtime.bundle import Bundle"),
        ("training.trainer", "import starflow.export.bundle"),
        ("export.exporter", "from starflow.calibration.plans import choose"),
        ("export.networks.autoencoder", "from starflow.export.bundle_writer import BundleWriter"),
        ("export.continuous.family", "from starflow.export.autoregressive.lowering import LOWERINGS"),
    ],
)
def test_the_rule_sees_what_it_forbids(module: str, source: str) -> None:
    assert len(offences(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runtime.backends.onnxruntime.session", "import onnxruntime"),
        ("runtime.plain.images", "from . import errors"),
        ("runtime.backends.choice", "from starflow.runtime.backends.tensorrt.backend import open_tensorrt"),
        ("runtime.sampler", "from starflow.runtime.plain.errors import UsageError"),
        ("training.data.dataset", "from starflow.runtime.plain import errors"),
        ("training.data.dataset", "from starflow.runtime.plans.decode_plan import Jacobi"),
        ("export.exporter", "from starflow.training.checkpoint import open_checkpoint"),
    ],
)
def test_the_rule_lets_pass_what_it_allows(module: str, source: str) -> None:
    assert offences(source, module) == []


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    code = "import sys, starflow.runtime; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "starflow" in loaded and not set(loaded) & {*NOT_IN_RUNTIME, "matplotlib", "rich", "scipy"}
