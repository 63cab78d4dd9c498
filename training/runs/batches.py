"""The batch of every step: a function of the seed and the step alone."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starflow.training.data.samples import Batch, Samples
from starflow.training.data.stored_images import StoredImages, stacked
from starflow.training.random_streams import ORDER, generator_for
from starflow.training.runs.engine import Engine

AHEAD = 2  # batches that are decoded while a step runs


class Batches:
    """The batches of a training part; every epoch has a new order and leaves out its incomplete last batch.

    Images on disk are decoded ahead by a few threads. Each process decodes its own share of a batch and gives it to the others:
    what a step learns from does not depend on the number of processes.
    """

    def __init__(self, samples: Samples, seed: int, size: int, engine: Engine) -> None:
        self._samples, self._seed, self._size, self._engine = samples, seed, size, engine
        self.per_epoch = len(samples) // size
        self._orders: dict[int, Tensor] = {}
        self._reading: dict[int, list[Future[NDArray[np.uint8]]]] = {}
        values = samples.values
        self._pool = ThreadPoolExecutor(values.readers) if isinstance(values, StoredImages) else None

    def at(self, step: int, device: torch.device) -> Batch:
        """The samples of a step, on a device.

        Raises:
            DataError: an image is damaged.
        """
        chosen = self._samples[self.indices(step)]
        if self._pool is None:
            return chosen.to(device)
        wanted = range(step, step + AHEAD + 1)
        self._cancel([each for each in self._reading if each not in wanted])
        for each in wanted:
            if each not in self._reading:
                self._reading[each] = self._own(self.indices(each)).start_reading(self._pool)
        images = stacked(self._reading.pop(step)).to(device)
        return replace(chosen, values=self._engine.gather(images)).to(device)

    def close(self) -> None:
        """Stop reading ahead; a later call of `at` begins again."""
        self._cancel(list(self._reading))

    def _cancel(self, steps: list[int]) -> None:
        for step in steps:
            for image in self._reading.pop(step):
                image.cancel()

    def _own(self, indices: Tensor) -> StoredImages:
        """The images that this process decodes."""
        values, share = self._samples.values, len(indices) // self._engine.count
        assert isinstance(values, StoredImages)
        return values[indices[self._engine.rank * share :][:share]]

    def indices(self, step: int) -> Tensor:
        """Which samples a step learns from, int64 [B]."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch not in self._orders:
            order = self._samples.order(generator_for(self._seed, ORDER, epoch)).to(self._samples.values.device)
            # Reading ahead may be in the next epoch already.
            self._orders = {
                epoch: order,
                **{each: known for each, known in self._orders.items() if abs(each - epoch) == 1},
            }
        start = place * self._size
        return self._orders[epoch][start : start + self._size]
