"""One sample through any backend, and bundles whose build.json says something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starflow.export.tensorrt.interpreter.backend import NetworkBackend
from starflow.export.verification.tolerances import DEFAULTS
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.build_record import BuildRecord
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.sampler import Plan, Sampler

# What `starflow verify` allows, by measurement: tokens are fed back, and the digits model amplifies a rounding 3 to 70 times.
FP16 = DEFAULTS["fp16", "sample"].value


def relative_error(found: NDArray, expected: NDArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def generate(bundle: Bundle, backend: Backend, count: int = 3, plan: Plan = "auto", weight: float = 1.5) -> NDArray:
    """A sample with whatever condition the bundle takes; closes the backend."""
    given = bundle.manifest.conditioning
    condition: Any = np.arange(count) % max(given.num_classes, 1)
    null = None
    guidance: float | Guidance = weight
    if given.kind == "features":
        draw = np.random.default_rng(0).standard_normal((count + 1, given.tokens, given.width), np.float32)
        condition, null = draw[:count], draw[count:]
    if bundle.manifest.model.family == "tarflow":
        guidance = Guidance(weight, annealed=True)
    with Sampler(bundle, bundle.variant("portable-fp16", "portable"), backend, plan) as sampler:
        return sampler.generate(sampler.noise(count, seed=5), condition, null, guidance=guidance)


def onnxruntime(bundle: Bundle) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(bundle, bundle.variant("portable-fp16", "portable"), threads=1)


def interpreter(bundle: Bundle) -> NetworkBackend:
    return NetworkBackend(bundle, bundle.variant("portable-fp16", "portable"), rounding=True)


def copy_of(bundle: Bundle, root: Path, **changes: Any) -> Bundle:
    """A copy of a bundle, with other values in its build.json and engines that were built so."""
    shutil.copytree(bundle.root, root, ignore=shutil.ignore_patterns("*.runtime-cache"))
    (path,) = root.glob("engines/*/*/build.json")
    copy = Bundle.open(root)
    record = BuildRecord.model_validate(json.loads(path.read_text()) | changes)
    engines = tuple(engine.model_copy(update={"key": record.key(copy, engine.block)}) for engine in record.engines)
    path.write_text(record.model_copy(update={"engines": engines}).model_dump_json())
    return copy
