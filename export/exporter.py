"""From a checkpoint to a bundle."""

import os

import torch

from starflow.export.autoregressive.exporter import FlowExporter
from starflow.export.continuous.exporter import VelocityExporter
from starflow.export.export_options import DEFAULTS, ExportOptions
from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.plain.atomic_write import atomic_folder
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.progress import Report, no_report
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.checkpoint import open_checkpoint
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.families import build_flow

__all__ = ["ExportOptions", "export_checkpoint"]


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
    if options.batch < 1:
        raise UsageError(f"--batch {options.batch}: give a number of images of at least 1")
    config, tensors = open_checkpoint(checkpoint)
    with torch.device("meta"):
        model = build_flow(config.model)
    tensors.check(model)
    with atomic_folder(bundle, replace=replace) as folder:
        if isinstance(model, ContinuousFlow):
            return VelocityExporter(folder, config, model, tensors, options, progress).run()
        assert isinstance(model, AutoregressiveFlow)
        return FlowExporter(folder, config, model, tensors, options, progress).run()
