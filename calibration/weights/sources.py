"""The variants of a bundle that quantised ones are made from."""

from collections.abc import Mapping, Sequence

from starflow.calibration.weights.treatment import TREATMENTS, WeightType
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Lowering
from starflow.runtime.plain.errors import BundleError, UsageError

# By lowering, the best choice first.
EXACT: dict[Lowering, tuple[str, ...]] = {
    "cpu": ("cpu-fp32",),
    "portable": ("portable-fp16",),
    "cuda": ("cuda-fp16",),
}
# Rounding to the nearest code needs no samples, and half precision costs 8-bit codes nothing.
PLAIN: dict[Lowering, tuple[str, ...]] = EXACT | {"cpu": ("cpu-fp32", "cpu-fp16")}


def find_sources(
    bundle: Bundle, weights: WeightType, lowerings: Sequence[Lowering] | None, known: Mapping[Lowering, Sequence[str]]
) -> dict[Lowering, str]:
    """The variant to start from, by lowering.

    Args:
        lowerings: The lowerings to make variants of; None takes those whose source the bundle holds.
        known: `EXACT` or `PLAIN`.

    Raises:
        UsageError: this type of weights is not for the lowering.
        BundleError: the bundle lacks the variant to start from.
    """
    possible = [lowering for lowering, kind in TREATMENTS if kind == weights]
    for lowering in lowerings or ():
        if lowering not in possible:
            raise UsageError(f"--lowering {lowering}: {weights} is for engines; name portable")
    present = {variant.name for variant in bundle.manifest.variants}
    found: dict[Lowering, str] = {}
    for lowering in possible:
        names = [name for name in known[lowering] if name in present]
        if names and lowering in (lowerings or possible):
            found[lowering] = names[0]
        elif lowerings and lowering in lowerings:
            raise lacking(bundle, known[lowering])
    if not found:
        raise lacking(bundle, known[possible[-1]])
    return found


def lacking(bundle: Bundle, names: Sequence[str]) -> BundleError:
    """The error of a bundle that has none of these variants."""
    present = ", ".join(variant.name for variant in bundle.manifest.variants)
    return BundleError(
        f"{bundle.root}: has no variant {' or '.join(names)}; it has {present}: "
        "export it again with --precision fp32 fp16"
    )
