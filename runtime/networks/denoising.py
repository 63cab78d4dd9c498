"""Denoising: a flow is trained on data with noise, and so are its samples. This removes the noise.

A bundle may have two graphs for it: the score of the flow itself, and a denoiser trained beside the flow. This module applies
their output. The third way, a decoder trained on noisy latents, is in `autoencoder.py`.
"""

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_spec import DenoiserSpec
from starflow.runtime.conditions import Conditions
from starflow.runtime.networks.network_runner import NetworkRunner
from starflow.runtime.plain.errors import NotFiniteError, UsageError

Denoising = Literal["none", "score", "learned", "decoder"]
Denoise = Literal["auto", "none", "score", "learned", "decoder"]
DENOISERS: tuple[Denoising, ...] = ("score", "learned")  # the ways that are graphs over data

LEARNED_STD = 0.3  # the published constant: learned denoisers are trained for it, whatever the noise_std of the flow

HOW_TO_HAVE = {
    "score": "`starflow export --denoise score` adds it",
    "learned": "`starflow export --denoise learned` adds it if the model has a denoiser",
    "decoder": "`starflow export` adds it if the checkpoint has a decoder that was trained on noisy latents",
}


def choose_denoising(manifest: Manifest, asked: str) -> Denoising:
    """The way of denoising that `asked` means for this bundle: `auto` is `decoder` if a decoder for noisy latents exists, else `none`.

    Raises:
        UsageError: the bundle lacks what is needed.
    """
    decoders = manifest.autoencoder.decoders if manifest.autoencoder else ()
    available: list[str] = list(dict.fromkeys(spec.kind for spec in manifest.denoisers))
    available += ["decoder"] if any(decoder.noise_std for decoder in decoders) else []
    if asked == "auto":
        return "decoder" if "decoder" in available else "none"
    for known in get_args(Denoising):
        if known == asked and known in ("none", *available):
            return known
    if asked not in HOW_TO_HAVE:
        raise UsageError(f"denoise {asked!r}: choose auto, {', '.join(get_args(Denoising))}")
    if not isinstance(manifest, AutoregressiveManifest):
        raise UsageError(f"denoise {asked!r}: samples of a continuous flow have no noise to remove; leave it out")
    has = f"only {', '.join(available)}" if available else "no way of denoising"
    raise UsageError(f"denoise {asked!r}: this bundle has {has}; {HOW_TO_HAVE[asked]}")


class Denoiser(NetworkRunner):
    """The score or the learned denoiser of a bundle, described at each of its batch sizes."""

    def __init__(self, bundle: Bundle, sessions: NetworkSessions, *specs: DenoiserSpec) -> None:
        super().__init__(sessions)
        self._kind, self._networks = specs[0].kind, [spec.network for spec in specs]
        self._step = bundle.autoregressive.model.noise_std**2 if self._kind == "score" else -LEARNED_STD

    def __call__(self, x: NDArray[np.float32], conditions: Conditions, rate: float) -> NDArray[np.float32]:
        """x + rate sigma^2 score, or x - rate 0.3 prediction, given the conditions without guidance.

        Args:
            x: [N, C, H, W] samples. N may be any number.
            rate: Fraction of the denoising step, 1 for the whole step.

        Raises:
            BackendError: the result is not finite.
        """
        given = {"x": x, "condition": conditions.tokens, "label": conditions.labels}
        found = self.run(self._networks, {name: value for name, value in given.items() if value is not None})
        denoised: NDArray[np.float32] = x + rate * self._step * found
        if not np.isfinite(denoised).all():
            raise NotFiniteError(f"the {self._kind} denoiser produced NaN or infinity; sample with denoise 'none'")
        return denoised


def choose_denoiser(manifest: Manifest, kind: str, variant: Variant) -> DenoiserSpec:
    """The denoiser of a kind for a variant: the one that shares the variant's weights, else the one of highest precision."""
    order = (variant.precision, "fp32", "fp16", "bf16")
    found = [spec for spec in manifest.denoisers if spec.kind == kind]
    return min(found, key=lambda spec: order.index(spec.precision))


def check_rate(rate: float) -> float:
    """The fraction of the denoising step; UsageError if it is negative or not finite."""
    if not (math.isfinite(rate) and rate >= 0):
        raise UsageError(f"denoising rate {rate}: give a number >= 0; 1 takes the whole denoising step")
    return rate
