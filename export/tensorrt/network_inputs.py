"""What a sampler gives the networks beside the flow: the inputs that precisions are chosen on, and compared on.

They come from the bundle itself. Captions are a few fixed ones, through the bundle's tokenizer. Data are samples of the flow, if
drawing them costs no more than `WORK`, and standard normal otherwise, which is what flows are trained to turn data into. Pixels
are what the decoders make of the data. A student gets what the flow block above its own made of a sample, standard normal likewise.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.students import student_tokens
from starflow.runtime.autoregressive.tokens import patchify, to_block
from starflow.runtime.backends.base import NetworkSessions
from starflow.runtime.backends.choice import onnxruntime_networks, runs_on
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.network_spec import NetworkSpec, StudentSpec
from starflow.runtime.conditions import encode_conditions
from starflow.runtime.family import OnBlock
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
        students = manifest.students if isinstance(manifest, AutoregressiveManifest) else ()
        outputs: dict[int, NDArray] = {}
        if autoencoder or manifest.denoisers or students:
            data = _data(bundle, condition, null, seed, outputs.__setitem__)
        for denoiser in manifest.denoisers:
            conditions = encode_conditions(manifest.conditioning, count, condition, None, guided=False)
            Denoiser(bundle, sessions, denoiser)(data, conditions, 1.0)
        if autoencoder:
            networks = Autoencoder(bundle, sessions, autoencoder)
            for decoder in autoencoder.decoders:
                pixels = networks.decode(data, noisy=decoder.noise_std > 0)
            if autoencoder.encoder:
                networks.encode(np.clip(pixels, -1, 1))
        for student in students:
            conditions = encode_conditions(manifest.conditioning, count, condition, null, guided=False)
            given = _given(bundle, student, outputs, seed)
            student_tokens(sessions.run, student, given, conditions, usual_weights(student, count))
        return sessions.runs


def usual_weights(student: StudentSpec, count: int) -> NDArray[np.float32]:
    """Guidance weights [count] that a student was trained for: 1 if it was."""
    return np.full(count, np.clip(1.0, *student.guidance), np.float32)


def student_noise(
    bundle: Bundle, student: StudentSpec, condition: NDArray | None, null: NDArray | None, seed: int = 0
) -> NDArray[np.float32]:
    """What the flow block of a student is given for one batch, [B, T, D] in block order; see `network_runs`."""
    outputs: dict[int, NDArray] = {}
    _data(bundle, condition, null, seed, outputs.__setitem__)
    return _given(bundle, student, outputs, seed)


def _given(bundle: Bundle, student: StudentSpec, outputs: Mapping[int, NDArray], seed: int) -> NDArray[np.float32]:
    """The same from the outputs [B, C, H, W] of the flow blocks of a sample."""
    manifest = bundle.autoregressive
    block = manifest.blocks[student.block]
    if block.index + 1 not in outputs:
        shape = (manifest.batch, *block.token_shape(manifest.model))
        return np.random.default_rng(seed).standard_normal(shape, np.float32)
    return to_block(patchify(outputs[block.index + 1], manifest.model), manifest.model, block)


def _data(
    bundle: Bundle, condition: NDArray | None, null: NDArray | None, seed: int, on_block: OnBlock
) -> NDArray[np.float32]:
    """A batch of data [B, ...]; `on_block` as in `Sampler.generate`, if a sample is drawn."""
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
        return sampler.generate(noise, condition, null, guidance=guidance, denoise="none", on_block=on_block)
