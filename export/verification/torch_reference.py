"""The checkpoint itself as the reference: PyTorch's own sampling, which knows nothing of graphs and caches.

Torch is imported when a reference is made, because verifying without a checkpoint does without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.continuous import PLAN
from starflow.runtime.autoregressive.tokens import patchify
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest
from starflow.runtime.continuous.integration_loop import plan_table
from starflow.runtime.ode.fixed_step import walk
from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.traces.case import Case
from starflow.runtime.traces.trace import Trace

if TYPE_CHECKING:
    from torch import Tensor


def torch_reference(checkpoint: Path, bundle: Bundle) -> "TorchReference | TorchPathReference":
    """The reference for a bundle of either family."""
    if isinstance(bundle.manifest, ContinuousManifest):
        return TorchPathReference(checkpoint, bundle)
    return TorchReference(checkpoint, bundle)


def _check_origin(checkpoint: Path, bundle: Bundle) -> None:
    from starflow.training.checkpoint import open_checkpoint

    _, tensors = open_checkpoint(checkpoint)
    if tensors.sha256() != bundle.manifest.provenance.checkpoint_sha256:
        raise CheckpointError(f"{checkpoint}: {bundle.root} was exported from another checkpoint; name that one")


class TorchReference:
    """A checkpoint's autoregressive model in float32 on the CPU.

    Args:
        checkpoint: Its folder.
        bundle: A bundle exported from it.

    Raises:
        CheckpointError: it cannot be read, or the bundle was exported from another one.
    """

    name = "torch"

    def __init__(self, checkpoint: Path, bundle: Bundle) -> None:
        from starflow.training.checkpoint import load_autoregressive

        self._manifest: AutoregressiveManifest = bundle.autoregressive
        _check_origin(checkpoint, bundle)
        self._model = load_autoregressive(checkpoint)[1]

    def trace(self, case: Case) -> Trace:
        """Sample the case with `AutoregressiveFlow.reverse`."""
        import torch

        condition, null = self._conditions(case)
        after: list[Tensor] = []
        self._model.reverse(torch.from_numpy(case.noise), condition, null, guidance=case.guidance, sequence=after)
        tokens: dict[int, NDArray] = {}
        for block, data in zip(reversed(self._manifest.blocks), after, strict=True):
            if not block.identity:
                raster = patchify(data.numpy(), self._manifest.model)
                tokens[block.index] = raster[:, ::-1] if block.reversed else raster
        return Trace(tokens)

    def denoise(self, kind: str, x: NDArray, case: Case) -> NDArray:
        """The case's samples x [N, C, H, W], denoised by the `score` or the `learned` denoiser."""
        import torch

        from starflow.training.autoregressive.denoise import learned_denoise, score_denoise
        from starflow.training.autoregressive.starflow import Starflow

        condition, _ = self._conditions(case)
        given, std = torch.from_numpy(np.ascontiguousarray(x)), self._manifest.model.noise_std
        if kind == "score":
            return score_denoise(self._model, given, condition, noise_std=std).numpy()
        assert isinstance(self._model, Starflow)
        return learned_denoise(self._model, given, condition, noise_std=1.0).numpy()

    def _conditions(self, case: Case) -> "tuple[Tensor | None, Tensor | None]":
        import torch

        if case.condition is None:
            return None, None
        condition = torch.from_numpy(np.ascontiguousarray(case.condition))
        if case.null_condition is not None:
            return condition, torch.from_numpy(case.null_condition).expand_as(condition)
        nothing = torch.full_like(condition, self._manifest.conditioning.num_classes)
        return self._model.encode_labels(condition), self._model.encode_labels(nothing)


class TorchPathReference:
    """A checkpoint's velocity network in float32 on the CPU, integrated in NumPy.

    Args:
        checkpoint: Its folder.
        bundle: A bundle exported from it.

    Raises:
        CheckpointError: it cannot be read, or the bundle was exported from another one.
    """

    name = "torch"

    def __init__(self, checkpoint: Path, bundle: Bundle) -> None:
        from starflow.training.checkpoint import load_continuous

        _check_origin(checkpoint, bundle)
        self._network = load_continuous(checkpoint)[1]

    def trace(self, case: Case) -> Trace:
        """Integrate the case by `flow_path.PLAN`."""
        import torch

        y, null = None, None
        if case.condition is not None:
            y = torch.from_numpy(np.ascontiguousarray(case.condition))
            null = torch.full_like(y, self._network.num_classes)
            if case.null_condition is not None:
                null = torch.from_numpy(case.null_condition).expand_as(y)

        def velocity(x: NDArray, time: float) -> NDArray:
            t = torch.full((len(x),), time)
            with torch.no_grad():
                v: NDArray = self._network.guided(torch.from_numpy(x), t, y, null, case.guidance).numpy()
            return v

        states = [x.reshape(len(x), -1) for x in walk(velocity, case.noise, plan_table(PLAN))]
        return Trace({0: np.stack(states, axis=1)})
