"""The checkpoint itself as the reference: PyTorch's own sampling, which knows nothing of graphs and caches.

Torch is imported only when a reference is opened: verifying without a checkpoint does not need it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.families import subject_of
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import CheckpointError
from starflow.runtime.traces.case import Case, Trace

if TYPE_CHECKING:
    from torch import Tensor


class TorchReference:
    """A checkpoint's model, of either family, in float32 on the CPU.

    CheckpointError if the checkpoint cannot be read, or the bundle was exported from another one.
    """

    name = "torch"

    def __init__(self, checkpoint: Path, bundle: Bundle) -> None:
        from starflow.training.checkpoint import load_flow, open_checkpoint

        if open_checkpoint(checkpoint)[1].sha256() != bundle.manifest.provenance.checkpoint_sha256:
            raise CheckpointError(
                f"{checkpoint}: {bundle.root} was exported from another checkpoint; name that checkpoint"
            )
        self._bundle, self._model = bundle, load_flow(checkpoint)[1]

    def trace(self, case: Case) -> Trace:
        """Sample the case."""
        return subject_of(self._bundle).model_trace(self._model, case, self._conditions(case))

    def denoise(self, kind: str, x: NDArray, case: Case) -> NDArray:
        """The case's samples x [N, C, H, W], denoised by the `score` or the `learned` denoiser."""
        import torch

        from starflow.training.autoregressive.denoise import learned_denoise, score_denoise
        from starflow.training.autoregressive.model import AutoregressiveFlow
        from starflow.training.autoregressive.starflow import Starflow

        condition, _ = self._conditions(case)
        given = torch.from_numpy(np.ascontiguousarray(x))
        if kind == "score":
            assert isinstance(self._model, AutoregressiveFlow)
            std = self._bundle.autoregressive.model.noise_std
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
        nothing = torch.full_like(condition, self._bundle.manifest.conditioning.num_classes)
        return self._model.encode_labels(condition), self._model.encode_labels(nothing)
