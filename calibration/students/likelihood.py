"""How likely a teacher finds samples: a flow has an exact density."""

from collections.abc import Callable

from numpy.typing import NDArray

from starflow.runtime.plain.bits_per_dim import LEVEL, bits_per_dim
from starflow.runtime.plain.errors import NotFiniteError
from starflow.runtime.sampler import Sampler


def teacher_bits(
    sampler: Sampler, data: NDArray, condition: NDArray | None, progress: Callable[[int, int], None] | None = None
) -> float | None:
    """Mean bits per dimension that the flow of a sampler, unguided, assigns to data under their condition.

    In the unit of `starflow score`: latents have no grey levels, and their bits may be negative.

    Args:
        data: [N, C, H, W] float32, as `Sampler.generate` returns them: training's noise is in them.
        condition: See `Sampler.generate`.
        progress: See `Sampler.invert`.

    Returns:
        None if some of the data lie so far off that their density is 0 or no number in float32.
    """
    try:
        found = sampler.invert(data, condition, progress=progress)
    except NotFiniteError:
        return None
    manifest = sampler.manifest
    latent = manifest.image.mode == "latent" or manifest.autoencoder is not None
    span = 256.0 if latent else 256 * LEVEL * manifest.image.scale
    return float(bits_per_dim(found.log_likelihood, data[0].size, span=span).mean())
