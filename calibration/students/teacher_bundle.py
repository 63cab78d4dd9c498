"""The teacher as a bundle, which the runtime samples exactly."""

from pathlib import Path

from starflow.export.export_options import ExportOptions
from starflow.export.exporter import export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Lowering
from starflow.runtime.plain.progress import Report, no_report

LOWERINGS: tuple[Lowering, ...] = ("cpu",)
BATCH = 16  # images that the exact sampler makes together


def teacher_bundle(checkpoint: Path, teacher: str, folder: Path, progress: Report = no_report) -> Bundle:
    """The teacher as a bundle for the CPU, exported unless it is there."""
    if folder.is_dir():
        bundle = Bundle.open(folder)
        if bundle.manifest.provenance.checkpoint_sha256 == teacher:
            return bundle
    options = ExportOptions(lowerings=LOWERINGS, batch=BATCH, denoisers=())
    export_checkpoint(checkpoint, folder, options, replace=True, progress=progress)
    return Bundle.open(folder)
