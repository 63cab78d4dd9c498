"""The checkpoint itself as the reference: PyTorch's own sampling, which knows nothing of graphs and caches.

Torch is imported when a reference is made, because verifying without a checkpoint does without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starflow.export.verification.trace import Case, Trace
from starflow.runtime.bundle import Bundle
from starflow.runtime.errors import CheckpointError
from starflow.runtime.manifest import Manifest
from starflow.runtime.tokens import patchify

if TYPE_CHECKING:
    from torch import Tensor


class TorchReference:
    """A checkpoint's model in float32 on the CPU.

    Args:
        checkpoint: Its folder.
        bundle: A bundle exported from it.

    Raises:
        CheckpointError: it cannot be read, or the bundle was exported from another one.
    """

    name = "torch"

    def __init__(self, checkpoint: Path, bundle: Bundle) -> None:
        from starflow.training.checkpoint import load_model, open_checkpoint

        self._manifest: Manifest = bundle.manifest
        _, tensors = open_checkpoint(checkpoint)
        if tensors.sha256() != bundle.manifest.provenance.checkpoint_sha256:
            raise CheckpointError(f"{checkpoint}: {bundle.root} was exported from another checkpoint; name that one")
        self._model = load_model(checkpoint)[1]

    def trace(self, case: Case) -> Trace:
        """Sample the case with `FlowModel.reverse`."""
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

    def _conditions(self, case: Case) -> "tuple[Tensor | None, Tensor | None]":
        import torch

        if case.condition is None:
            return None, None
        condition = torch.from_numpy(np.ascontiguousarray(case.condition))
        if case.null_condition is not None:
            return condition, torch.from_numpy(case.null_condition).expand_as(condition)
        nothing = torch.full_like(condition, self._manifest.conditioning.num_classes)
        return self._model.encode_labels(condition), self._model.encode_labels(nothing)
