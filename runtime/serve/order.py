"""What one client asks for, and what became of it."""

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.networks.denoising import Denoise
from starflow.runtime.plain.guidance import Guidance

# Called with the number of an image in its order, the flow block just run, and the preview, uint8 [H, W, C].
OnPreview = Callable[[int, int, NDArray[np.uint8]], None]
# Called with the number of an image in its order, and the image, as soon as it is made.
OnImage = Callable[[int, NDArray], None]


@dataclass(frozen=True)
class Order:
    """N images of one request.

    Attributes:
        condition: Class labels, captions or condition tokens, one for each image, or None; see `Sampler.generate`.
        seeds: A seed for each image, on which its noise depends alone.
        guidance: Of each image.
        temperature: Standard deviation of the noise.
        output: `images` are uint8 [N, H, W, C], `latents` the flow's data, float32.
        preview_blocks: Flow blocks after which a preview is made, if there is somebody to show it to; None means all of them.
    """

    condition: list[Any] | NDArray | None
    seeds: tuple[int, ...]
    guidance: tuple[Guidance, ...]
    temperature: float = 1.0
    denoise: Denoise = "auto"
    output: Literal["images", "latents"] = "images"
    preview_blocks: frozenset[int] | None = None

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.seeds)

    @property
    def kind(self) -> tuple[object, ...]:
        """Images of orders of one kind may share a batch."""
        return type(self.condition), self.denoise


class Ticket:
    """An order in the queue or under way. `future` gets its images, [N, ...], or the error that ended it.

    Attributes:
        on_preview, on_image: Called by the thread that samples; None if nobody looks at previews or waits for single images.
        placed: When it entered the queue, in seconds of `time.monotonic`.
        taken: How many of its images a worker has taken.
    """

    def __init__(
        self, order: Order, placed: float, on_preview: OnPreview | None = None, on_image: OnImage | None = None
    ) -> None:
        self.order, self.placed, self.on_preview, self._on_image = order, placed, on_preview, on_image
        self.future: Future[NDArray] = Future()
        self.taken = 0
        self._made: dict[int, NDArray] = {}

    def shows(self, block: int) -> bool:
        """Whether somebody waits for a preview after a flow block."""
        blocks = self.order.preview_blocks
        return self.on_preview is not None and not self.is_over and (blocks is None or block in blocks)

    @property
    def is_over(self) -> bool:
        """Whether it is done, has failed or was cancelled."""
        return self.future.done()

    def cancel(self) -> None:
        """Give it up: what is queued is dropped, and a batch that nobody waits for ends at its next report."""
        self.future.cancel()

    def fail(self, error: BaseException) -> None:
        """End it by an error, unless it is over."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def deliver(self, index: int, image: NDArray) -> None:
        """Add an image; the last one completes the order."""
        self._made[index] = image
        if self._on_image and not self.is_over:
            self._on_image(index, image)
        if len(self._made) == self.order.count:
            with suppress(InvalidStateError):  # given up meanwhile
                self.future.set_result(np.stack([self._made[each] for each in range(self.order.count)]))
