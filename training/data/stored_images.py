"""Images that stay on disk, and are decoded when they are used."""

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from starflow.runtime.plain.errors import DataError, UsageError
from starflow.training.data.pixels import pixels_of


class ImageStore(Protocol):
    """Where N images lie. Several threads read at once."""

    @property
    def digest(self) -> str:
        """A digest that differs when the files were written again."""

    @property
    def shards(self) -> Tensor | None:
        """The file that each image lies in, int64 [N]; None where every order of reading is as fast."""

    def __len__(self) -> int: ...

    def image(self, index: int, mode: Literal["L", "RGB"]) -> Image.Image:
        """Decode an image; UsageError if it is damaged."""


@dataclass(frozen=True)
class StoredImages:
    """Images uint8 [N, C, S, S] of a store, each decoded anew whenever it is used.

    It stands in for a tensor: an index or a slice chooses images, and `to` decodes them.
    """

    store: ImageStore
    index: Tensor  # int64 [N], of the images in the store
    mode: Literal["L", "RGB"]
    size: int  # S: the short side is scaled to it, and the centre cropped
    readers: int  # threads that decode
    buffer: int | None  # images over which the order of an epoch mixes neighbours; None: all

    dtype: ClassVar[torch.dtype] = torch.uint8
    device: ClassVar[torch.device] = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, chosen: Tensor | slice) -> "StoredImages":
        return replace(self, index=self.index[chosen])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, C, S, S]."""
        return len(self), 1 if self.mode == "L" else 3, self.size, self.size

    @property
    def nbytes(self) -> int:
        """Memory that is held, in bytes."""
        return self.index.nbytes

    def split(self, count: int) -> list["StoredImages"]:
        """Parts of `count` images; the last may have fewer."""
        return [replace(self, index=part) for part in self.index.split(count)]

    def order(self, generator: torch.Generator) -> Tensor:
        """The order of an epoch, int64 [N].

        Without shards or a buffer it is any permutation. Otherwise shards come in a random order, and an image moves by at most
        `buffer` places from where its shard has it, so that reading goes through a few shards at a time.
        """
        shards = self.store.shards
        if shards is None or self.buffer is None:
            return torch.randperm(len(self), generator=generator)
        own = shards[self.index]
        places = torch.randperm(int(shards.max()) + 1, generator=generator)
        one_by_one = torch.sort(places[own], stable=True).indices
        moved = torch.arange(len(self)) + self.buffer * torch.rand(len(self), dtype=torch.float64, generator=generator)
        return one_by_one[moved.argsort(stable=True)]

    def start_reading(self, pool: Executor) -> list[Future[NDArray[np.uint8]]]:
        """Let a pool decode the images, each uint8 [C, S, S]."""
        return [pool.submit(self._pixels, index) for index in self.index.tolist()]

    def to(self, device: torch.device) -> Tensor:
        """Decode the images, uint8 [N, C, S, S].

        Raises:
            DataError: one is damaged.
        """
        with ThreadPoolExecutor(self.readers) as pool:
            return stacked(self.start_reading(pool)).to(device)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        try:
            return pixels_of(self.store.image(index, self.mode), self.size)
        except UsageError as error:
            raise DataError(str(error)) from None


def stacked(images: list[Future[NDArray[np.uint8]]]) -> Tensor:
    """Images as one tensor, uint8 [N, C, H, W], once they are decoded."""
    return torch.from_numpy(np.stack([image.result() for image in images]))
