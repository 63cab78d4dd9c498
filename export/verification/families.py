"""What is compared of each family of flows. A further family is a `Subject` and a row here."""

from collections.abc import Callable

from starflow.export.verification.autoregressive import AutoregressiveSubject
from starflow.export.verification.continuous import ContinuousSubject
from starflow.export.verification.subject import Subject
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.continuous_manifest import ContinuousManifest

FAMILIES: dict[type, Callable[[Bundle], Subject]] = {
    AutoregressiveManifest: AutoregressiveSubject,
    ContinuousManifest: ContinuousSubject,
}


def subject_of(bundle: Bundle) -> Subject:
    """What is compared of a bundle."""
    return FAMILIES[type(bundle.manifest)](bundle)
