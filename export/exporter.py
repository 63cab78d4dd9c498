"""From a checkpoint to a bundle."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from starflow.export.autoregressive.family import AutoregressiveFamily
from starflow.export.bundle_writer import BundleWriter
from starflow.export.continuous.family import ContinuousFamily
from starflow.export.export_options import DEFAULTS, ExportOptions
from starflow.export.flow_family import FlowFamily
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.plain.atomic_write import atomic_folder, check_output_folder
from starflow.runtime.plain.own_folder import BUNDLE
from starflow.runtime.plain.progress import Report, no_report
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import open_checkpoint
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.families import build_flow
from starflow.training.tensor_file import check_digest

__all__ = ["ExportOptions", "export_checkpoint"]

FAMILIES: dict[type, Callable[..., FlowFamily]] = {
    AutoregressiveFlow: AutoregressiveFamily,
    ContinuousFlow: ContinuousFamily,
}


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    options: ExportOptions = DEFAULTS,
    *,
    replace: bool = False,
    progress: Report = no_report,
) -> Manifest:
    """Export a checkpoint folder as a bundle, atomically.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError, UsageError: the options do not fit the model, or weights or activations do not fit the precision.
    """
    config, tensors = open_checkpoint(checkpoint)
    check_output_folder(Path(bundle), BUNDLE, replace=replace, source=Path(checkpoint))
    with torch.device("meta"):
        model = build_flow(config.model)
    tensors.check(model)
    check_digest(tensors.path)
    family = next(family for kind, family in FAMILIES.items() if isinstance(model, kind))
    with atomic_folder(bundle, BUNDLE, replace=replace, source=Path(checkpoint)) as folder:
        made = family(config, model, tensors, options)
        return BundleWriter(folder, config, tensors, options, made, progress).run()
