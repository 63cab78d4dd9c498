"""The C++ library over simulated hardware: `simulated/` is linked in place of the files that reach the real one."""

import ctypes
import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from starflow.runtime.bundle.build_record import (
    BuildConfig,
    BuildOptions,
    BuildRecord,
    EngineSpec,
    Profile,
    build_folder,
)
from starflow.runtime.bundle.bundle import Bundle, sha256
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec, TensorSpec, fixed_shape
from tests.cpp_library import CppSampler, build, load, run

VERSION = "1.0"  # of the simulated TensorRT


@cache
def simulated_library() -> ctypes.CDLL:
    """The library of tests, built beside the real one."""
    run("cmake", "--build", build(), "--target", "starflow-simulated")
    loaded = load("libstarflow-simulated.so")
    loaded.simulated_violations.restype = loaded.simulated_leaks.restype = ctypes.c_char_p
    loaded.simulated_count.restype = loaded.simulated_filled.restype = ctypes.c_size_t
    return loaded


class SimulatedSampler(CppSampler):
    """A sampler on the simulated hardware."""

    library = staticmethod(simulated_library)


def count(call: str) -> int:
    """How often the library has called a function of the simulated hardware."""
    return int(simulated_library().simulated_count(call.encode()))


def filled(size: int) -> int:
    """How many allocations of `size` bytes on the device hold something else than zeros, once all work is done."""
    return int(simulated_library().simulated_filled(ctypes.c_size_t(size)))


def engine_of(bundle: Bundle, graph: GraphSpec, profiles: Sequence[Profile]) -> dict[str, Any]:
    """What an engine of a graph claims of itself, and the graph that it runs."""
    updated = {spec.updated_by: spec.name for spec in graph.inputs if spec.updated_by}

    def tensor(spec: TensorSpec, *, is_input: bool) -> dict[str, Any]:
        claims = {"name": spec.name, "input": is_input, "device": True, "type": spec.dtype}
        updates = "" if is_input else updated.get(spec.name, "")
        return {**claims, "shape": fixed_shape(spec, -1), "updates": updates}

    def shapes(index: int, profile: Profile, spec: TensorSpec) -> list[tuple[int, ...]]:
        # As the builder has it: with several profiles, steps are given no condition.
        absent = index == 0 and len(profiles) > 1 and spec.role == "condition"
        sizes = (0, 0, 0) if absent else (profile.minimum, profile.optimum, profile.maximum)
        return [fixed_shape(spec, size) for size in sizes]

    longest = bundle.manifest.longest_run(graph.block)
    inputs = [tensor(spec, is_input=True) for spec in graph.inputs]
    outputs = [tensor(spec, is_input=False) for spec in graph.outputs]
    within = [profile.within(longest) for profile in profiles]
    return {
        "graph": str(bundle.root / graph.file.path),
        "tensors": inputs + outputs,
        "profiles": [
            {spec.name: shapes(index, profile, spec) for spec in graph.inputs if "S" in spec.shape}
            for index, profile in enumerate(within)
        ],
        "scratch": 1024 * (1 + graph.block),
    }


def write_engines(
    bundle: Bundle,
    variant: str,
    *,
    tokens: Sequence[int] = (1, 16),
    flavour: Any = "tensorrt",
    version: str = VERSION,
    options: BuildOptions | None = None,
) -> Path:
    """Write engines for compute capability 8.9 that the simulated TensorRT loads, and return their folder."""
    profiles = tuple(Profile(minimum=1, optimum=count, maximum=count) for count in tokens)
    config = BuildConfig(
        flavour=flavour,
        version=version,
        compute_capabilities=("8.9",),
        variant=variant,
        profiles=profiles,
        options=options or BuildOptions(),
    )
    folder = bundle.root / build_folder(bundle, config.target, variant).relative_to(bundle.folder)
    folder.mkdir(parents=True)
    engines = []
    for graph in bundle.variant(variant, "portable").graphs:
        path = folder / f"block{graph.block}.engine"
        path.write_text(json.dumps(engine_of(bundle, graph, profiles)))
        name = path.relative_to(bundle.root).as_posix()
        file = FileSpec(path=name, bytes=path.stat().st_size, sha256=sha256(path))
        engines.append(EngineSpec(block=graph.block, file=file, key=config.key(bundle, graph.block)))
    record = BuildRecord(
        schema_version=1, **dict(config), engines=tuple(engines), created=datetime.now(UTC).isoformat()
    )
    (folder / "build.json").write_text(record.model_dump_json(indent=1))
    return folder


def with_engines(bundle: Path, root: Path, variant: str, **how: Any) -> Path:
    """A copy of a bundle, by hard links, that has engines of a variant."""
    shutil.copytree(bundle, root, copy_function=os.link)
    write_engines(Bundle.open(root), variant, **how)
    return root
