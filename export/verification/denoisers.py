"""Compares the denoisers of a bundle with those of PyTorch, on the reference's samples."""

from numpy.typing import NDArray

from starflow.export.verification.agreement import Measurement, compare_one
from starflow.export.verification.routes import NotRun
from starflow.export.verification.subject import Part
from starflow.export.verification.tolerances import Tolerances
from starflow.export.verification.torch_reference import TorchReference
from starflow.runtime.autoregressive.tokens import patchify
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import DenoiserSpec
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.networks.denoising import Denoiser
from starflow.runtime.traces.case import Case


def denoiser_name(spec: DenoiserSpec) -> str:
    """How reports call it."""
    return f"denoiser {spec.kind}-{spec.precision}"


def without_reference(bundle: Bundle) -> list[NotRun]:
    """The denoisers, where there is no checkpoint to compare them with."""
    return [NotRun(denoiser_name(s), "it has no reference here; name --checkpoint") for s in bundle.manifest.denoisers]


def compare_denoiser(
    bundle: Bundle, spec: DenoiserSpec, reference: TorchReference, case: Case, x: NDArray, tolerances: Tolerances
) -> tuple[list[Measurement], NDArray]:
    """Compare what a denoiser adds to the reference's samples of a case, x [N, C, H, W], with what PyTorch's adds.

    Returns:
        The comparison, and the denoised samples [N, C, H, W].
    """
    manifest, name = bundle.autoregressive, denoiser_name(spec)
    conditions = encode_conditions(manifest.conditioning, len(x), case.condition, None, guided=False)
    denoiser = Denoiser(bundle, spec)
    found = denoiser(x, conditions, 1.0)
    denoiser.close()
    expected, added = (patchify(y - x, manifest.model) for y in (reference.denoise(spec.kind, x, case), found))
    tolerance = tolerances[spec.precision, "denoise"]
    return compare_one(name, "denoise", Part("the image"), expected, added, tolerance), found
