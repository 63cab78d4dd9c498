"""What is compared of each family of flows."""

from starflow.export.verification.autoregressive import FlowBlocks
from starflow.export.verification.continuous import FlowPath
from starflow.export.verification.subject import Subject
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest


def subject_of(bundle: Bundle) -> Subject:
    """What is compared of a bundle."""
    return FlowPath(bundle) if isinstance(bundle.manifest, ContinuousManifest) else FlowBlocks(bundle)
