"""The families of flows that the runtime knows. Adding a family is a manifest, a loop, and a row here."""

from collections.abc import Callable
from typing import Any

from starflow.runtime.autoregressive.loop import AutoregressiveLoop, resolve_decode_plan
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.continuous.loop import ContinuousLoop, resolve_integration_plan
from starflow.runtime.family import FamilyLoop

# By type of manifest: what reads a plan, and the loop that runs it.
FAMILIES: dict[type, tuple[Callable[[Any, object], Any], Callable[[Bundle, Variant, Backend, Any], FamilyLoop]]] = {
    AutoregressiveManifest: (resolve_decode_plan, AutoregressiveLoop),
    ContinuousManifest: (resolve_integration_plan, ContinuousLoop),
}


def resolve_plan(manifest: Manifest, plan: object) -> Any:
    """The plan for a value that `Sampler.open` takes, None for `auto`; UsageError if it does not fit the bundle."""
    resolve, _ = FAMILIES[type(manifest)]
    return resolve(manifest, plan)


def open_loop(bundle: Bundle, variant: Variant, backend: Backend, plan: object) -> FamilyLoop:
    """The loop that samples from a bundle; see `Sampler.open` for `plan`. UsageError if the plan does not fit."""
    _, loop = FAMILIES[type(bundle.manifest)]
    return loop(bundle, variant, backend, resolve_plan(bundle.manifest, plan))
