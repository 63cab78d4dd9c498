"""The families of flows the runtime knows. A further one is a manifest, a loop, and a row here."""

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

# By the type of the manifest: how a plan is read, and what runs it.
FAMILIES: dict[type, tuple[Callable[[Any, object], Any], Callable[[Bundle, Variant, Backend, Any], FamilyLoop]]] = {
    AutoregressiveManifest: (resolve_decode_plan, AutoregressiveLoop),
    ContinuousManifest: (resolve_integration_plan, ContinuousLoop),
}


def resolve_plan(manifest: Manifest, plan: object) -> Any:
    """A plan that fits a bundle, from whatever `Sampler.open` takes; None for `auto`.

    Raises:
        UsageError: it does not fit, or is a plan of the other family.
    """
    resolve, _ = FAMILIES[type(manifest)]
    return resolve(manifest, plan)


def open_loop(bundle: Bundle, variant: Variant, backend: Backend, plan: object) -> FamilyLoop:
    """The loop of a bundle's family.

    Args:
        bundle: The bundle.
        variant: The variant that runs.
        backend: Runs it.
        plan: See `Sampler.open`.

    Raises:
        UsageError: the plan does not fit.
    """
    _, loop = FAMILIES[type(bundle.manifest)]
    return loop(bundle, variant, backend, resolve_plan(bundle.manifest, plan))
