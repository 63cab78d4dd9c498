"""What a sampler gives the networks beside the flow: the inputs that precisions are chosen on, and compared on.

They come from the bundle itself. Captions are a few fixed ones, through the bundle's tokenizer. Data are samples of the flow, if
drawing them costs no more than `WORK`, and standard normal otherwise, which is what flows are trained to turn data into. Pixels
are what the decoders make of the data.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.backends.choice import onnxruntime_networks, runs_on
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import NetworkSpec
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.networks.autoencoder import Autoencoder
from starflow.runtime.networks.caption_encoder import CaptionEncoder
from starflow.runtime.networks.denoising import Denoiser
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.case import CAPTIONS, usual_conditions

FEW = 3  # captions
WORK = 1e12  # multiply-adds of drawing a batch of samples: half a minute on two cores

Inputs = Mapping[str, NDArray]


@dataclass(frozen=True)
class NetworkRun:
    """One run of a network on ONNX Runtime, in float32: every input by name, and the output."""

    inputs: Inputs
    output: NDArray


class _Recorder(NetworkSessions):
    """Keeps what networks are given and what they answer."""

    def __init__(self, sessions: NetworkSessions) -> None:
        self._sessions = sessions
        self.runs: dict[str, list[NetworkRun]] = {}

    def run(self, network: NetworkSpec, inputs: Inputs) -> NDArray:
        output = self._sessions.run(network, inputs)
        kept = {name: value.copy() for name, value in inputs.items()}
        self.runs.setdefault(network.file.path, []).append(NetworkRun(kept, output))
        return output

    def close(self) -> None:
        self._sessions.close()


def network_runs(bundle: Bundle, seed: int = 0) -> dict[str, list[NetworkRun]]:
    """Runs of every network of a bundle at one shape and batch size, by the path of the network's graph.

    Args:
        bundle: The bundle at one place, see `Bundle.at`.
        seed: Of the samples.

    Raises:
        BackendError: a network produced NaN or infinity.
    """
    manifest = bundle.manifest
    count, autoencoder = manifest.batch, manifest.autoencoder
    with closing(_Recorder(onnxruntime_networks(bundle, "cpu", 0, lean=True))) as sessions:
        condition: NDArray | None
        null: NDArray | None
        if manifest.text:
            encoder = CaptionEncoder(bundle, sessions, manifest.text)
            features = encoder.encode(CAPTIONS[:FEW])
            condition, null = features[np.arange(count) % FEW], encoder.null
        else:
            condition, null = usual_conditions(bundle, count, seed)
        if autoencoder or manifest.denoisers:
            data = _data(bundle, condition, null, seed)
        for denoiser in manifest.denoisers:
            conditions = encode_conditions(manifest.conditioning, count, condition, None, guided=False)
            Denoiser(bundle, sessions, denoiser)(data, conditions, 1.0)
        if autoencoder:
            networks = Autoencoder(bundle, sessions, autoencoder)
            for decoder in autoencoder.decoders:
                pixels = networks.decode(data, noisy=decoder.noise_std > 0)
            if autoencoder.encoder:
                networks.encode(np.clip(pixels, -1, 1))
        return sessions.runs


def _data(bundle: Bundle, condition: NDArray | None, null: NDArray | None, seed: int) -> NDArray[np.float32]:
    """A batch of data [B, ...]."""
    manifest = bundle.manifest
    work = 2.0 * manifest.model.parameters * manifest.batch * prod(manifest.model.data_shape)
    # No CPU computes in bf16.
    variants = [each for each in manifest.variants if runs_on(each, "cpu") and each.precision != "bf16"]
    if work > WORK or not variants:
        shape = (manifest.batch, *manifest.model.data_shape)
        return np.random.default_rng(seed).standard_normal(shape, np.float32)
    variant = min(variants, key=lambda each: (each.precision != "fp32", each.lowering != "cpu")).name
    guidance = 1.0 if manifest.guided else 0.0
    with Sampler.open(bundle, backend="onnxruntime", variant=variant) as sampler:
        noise = sampler.noise(manifest.batch, seed)
        return sampler.generate(noise, condition, null, guidance=guidance, denoise="none")
