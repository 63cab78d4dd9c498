"""Denoising: from samples of the noised data, which a flow is trained on, back towards the data.

A bundle may hold two graphs for it: the flow's own score, and the prediction of a denoiser trained beside the flow. What is
done with their output is written here. The third way, a decoder trained on noisy latents, is the decoder's business.
"""

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import Provider
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.bundle.network_spec import DenoiserSpec
from starflow.runtime.conditions import Conditions
from starflow.runtime.networks.session import NetworkSession
from starflow.runtime.plain.batches import batches
from starflow.runtime.plain.errors import BackendError, UsageError

Denoising = Literal["none", "score", "learned", "decoder"]
Denoise = Literal["auto", "none", "score", "learned", "decoder"]
DENOISERS: tuple[Denoising, ...] = ("score", "learned")  # those that are graphs over data

LEARNED_STD = 0.3  # the published constant; a learned denoiser is trained for it whatever the flow's noise_std

HOW_TO_HAVE = {
    "score": "`starflow export --denoise score` adds it",
    "learned": "`starflow export --denoise learned` adds it where the model has one",
    "decoder": "`starflow export` adds it where the checkpoint holds a decoder that was trained on noisy latents",
}


def choose_denoising(manifest: Manifest, asked: str) -> Denoising:
    """What `asked` comes to with this bundle: `auto` is `decoder` where there is one for noisy latents, else `none`.

    Raises:
        UsageError: the bundle lacks what is asked for.
    """
    available = _available(manifest)
    if asked == "auto":
        return "decoder" if "decoder" in available else "none"
    for known in get_args(Denoising):
        if known == asked and known in ("none", *available):
            return known
    if asked not in HOW_TO_HAVE:
        raise UsageError(f"denoise {asked!r}: choose auto, {', '.join(get_args(Denoising))}")
    if not isinstance(manifest, AutoregressiveManifest):
        raise UsageError(f"denoise {asked!r}: a continuous flow samples the data without noise; leave it out")
    has = f"the denoising {', '.join(available)}" if available else "no denoising"
    raise UsageError(f"denoise {asked!r}: this bundle has {has}; {HOW_TO_HAVE[asked]}")


def _available(manifest: Manifest) -> list[str]:
    """Everything but `none`."""
    found = list(dict.fromkeys(spec.kind for spec in manifest.denoisers))
    decoders = manifest.autoencoder.decoders if manifest.autoencoder else ()
    return [*found, *(["decoder"] if any(decoder.noise_std for decoder in decoders) else [])]


class Denoiser:
    """The score or the learned denoiser of a bundle, ready to run.

    Args:
        bundle: The bundle.
        spec: One of its denoisers.
        provider, threads: See `NetworkSession`.
    """

    def __init__(self, bundle: Bundle, spec: DenoiserSpec, *, provider: Provider = "cpu", threads: int = 0) -> None:
        self._spec, self._batch = spec, bundle.manifest.batch
        self._step = bundle.autoregressive.model.noise_std**2 if spec.kind == "score" else -LEARNED_STD
        self._session = NetworkSession(bundle, spec.network, provider=provider, threads=threads)

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def __call__(self, x: NDArray[np.float32], conditions: Conditions, rate: float) -> NDArray[np.float32]:
        """x + rate sigma^2 score, or x - rate 0.3 prediction, given the conditions without guidance.

        Args:
            x: [N, C, H, W], samples of the noised data. N may be any number.
            conditions: Of the N images.
            rate: Part of the way to go.

        Raises:
            BackendError: the result is not finite.
        """
        denoised = np.empty_like(x)
        for part, index in batches(len(x), self._batch):
            chosen = conditions.part(index)
            given = {"x": x[index], "condition": chosen.tokens, "label": chosen.labels}
            (found,) = self._session.run({k: value for k, value in given.items() if value is not None}).values()
            denoised[part] = x[part] + rate * self._step * found[: part.stop - part.start]
        if not np.isfinite(denoised).all():
            raise BackendError(f"the {self._spec.kind} denoiser produced NaN or infinity; sample with denoise 'none'")
        return denoised


def choose_denoiser(manifest: Manifest, kind: str, variant: Variant) -> DenoiserSpec:
    """The denoiser of a kind for a variant: over the same weights, else of the highest precision there is."""
    order = (variant.precision, "fp32", "fp16", "bf16")
    found = [spec for spec in manifest.denoisers if spec.kind == kind]
    return min(found, key=lambda spec: order.index(spec.precision))


def check_rate(rate: float) -> float:
    """A rate of denoising.

    Raises:
        UsageError: it is negative or not finite.
    """
    if not (math.isfinite(rate) and rate >= 0):
        raise UsageError(f"denoising rate {rate}: give a number >= 0; 1 goes all the way")
    return rate
