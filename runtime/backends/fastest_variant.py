"""The fastest variant of a bundle on this CPU, by the times that its calibration recorded.

Every quantised variant was made within a budget of error, and timed against the exact one it was made from. Times of another
processor are not trusted: what is twice as fast there may be slower here.
"""

import logging

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Timing, Variant
from starflow.runtime.plain.processor import processor

logger = logging.getLogger(__name__)

PAYS = 0.95  # a variant that takes more of the exact one's time than this is not worth its error


def fastest_variant(bundle: Bundle, default: Variant) -> Variant:
    """The fastest variant, or `default` if none is known to be faster than it.

    A variant counts if it was made from `default`, timed on this processor, and is faster at every batch size of the bundle, in
    single steps and in chunks. A warning of this module's logger says so if variants were timed elsewhere.

    Args:
        bundle: The bundle, at the shape and the batch size that will run, if one was chosen.
        default: The exact variant.
    """
    sizes, best, least, elsewhere = bundle.manifest.batch_sizes, default, PAYS, list[str]()
    for variant in bundle.manifest.variants:
        record = variant.quantization
        if not record or not record.timing or record.source != default.name:
            continue
        if record.timing.processor != processor():
            elsewhere.append(variant.name)
            continue
        slowest = _slowest(record.timing, sizes)
        if slowest < least:
            best, least = variant, slowest
    if elsewhere:
        logger.warning(
            "%s: %s timed on another processor than this one (%s), so their times do not count; calibrate again: "
            "starflow calibrate %s --weights TYPE",
            bundle.root,
            f"{', '.join(elsewhere)} {'was' if len(elsewhere) == 1 else 'were'}",
            processor(),
            bundle.root,
        )
    return best


def _slowest(timing: Timing, sizes: tuple[int, ...]) -> float:
    """The largest of the times over those of the exact variant; 1 if it was not timed at each of these batch sizes."""
    found = {each.batch: max(each.step, each.chunk) for each in timing.batches}
    return max(found.get(size, 1.0) for size in sizes)
