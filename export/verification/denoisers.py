"""The denoisers of a bundle against PyTorch's, on the reference's samples."""

from numpy.typing import NDArray

from starflow.export.verification.agreement import Measurement, compare
from starflow.export.verification.routes import NotRun
from starflow.export.verification.tolerances import Tolerances
from starflow.export.verification.torch_reference import TorchReference
from starflow.runtime.autoregressive.tokens import patchify
from starflow.runtime.bundle.autoregressive_manifest import Block
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
    return [NotRun(denoiser_name(s), "is compared with PyTorch: name --checkpoint") for s in bundle.manifest.denoisers]


def compare_denoiser(
    bundle: Bundle, spec: DenoiserSpec, reference: TorchReference, case: Case, x: NDArray, tolerances: Tolerances
) -> tuple[list[Measurement], NDArray]:
    """Compare what a denoiser adds to samples with what PyTorch's adds.

    Args:
        bundle: The bundle.
        spec: One of its denoisers.
        reference: The checkpoint.
        case: What was sampled.
        x: [N, C, H, W] the reference's samples of it.
        tolerances: How far apart the two may be.

    Returns:
        The comparison, of the whole image as one block, and the denoised samples [N, C, H, W].
    """
    manifest = bundle.autoregressive
    conditions = encode_conditions(manifest.conditioning, len(x), case.condition, None, guided=False)
    denoiser = Denoiser(bundle, spec)
    found = denoiser(x, conditions, 1.0)
    denoiser.close()
    expected = reference.denoise(spec.kind, x, case)
    steps = {0: patchify(expected - x, manifest.model)}, {0: patchify(found - x, manifest.model)}
    whole = Block(
        index=0,
        identity=False,
        reversed=False,
        rows=manifest.batch,
        prefix=0,
        first_token=0,
        capacity=manifest.model.tokens,
    )
    tolerance = tolerances[spec.precision, "denoise"]
    return compare(denoiser_name(spec), "denoise", {0: whole}, *steps, tolerance), found
