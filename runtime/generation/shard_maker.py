"""Makes shards, one after the other, in this process."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.generation.image_set import Condition
from starflow.runtime.generation.job import Job
from starflow.runtime.generation.set_record import asked_for, claim_folder
from starflow.runtime.generation.shard_format import Content, Item
from starflow.runtime.generation.split import shard_images
from starflow.runtime.networks.denoising import choose_denoising
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plain.images import png_bytes
from starflow.runtime.sampler import Sampler

MOST_ENCODED = 64  # captions whose features are kept: with T5-XL they take 64 MiB


@dataclass(frozen=True)
class MadeShard:
    """What became of a shard.

    Attributes:
        shard: Its number.
        written: Whether it was made now; False if it was there.
        images: Number of its images.
        seconds: How long it took.
    """

    shard: int
    written: bool
    images: int
    seconds: float


class ShardMaker:
    """Makes the shards of a job. The bundle is opened for the first one that is missing."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sampler: Sampler | None = None
        self._encoded: dict[str, NDArray[np.float32]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._sampler:
            self._sampler.close()

    def make(self, shard: int, progress: Callable[[int, int], None] = lambda done, total: None) -> MadeShard:
        """Write a shard, batch by batch, unless it is there. It appears whole or not at all.

        Args:
            shard: Its number.
            progress: Called with the images done and in total.

        Raises:
            StarflowError: the bundle cannot run, the folder holds shards of another set, or a file cannot be written.
        """
        start, job = perf_counter(), self._job
        images = shard_images(job.images.count, job.batch, job.folder.shards, shard)
        if not job.force and job.folder.is_made(shard):
            return MadeShard(shard, False, len(images), perf_counter() - start)
        sampler = self._opened()
        content: Content = "png" if sampler.manifest.output == "images" else "npy"
        with atomic_file(job.folder.path(shard)) as temporary, job.folder.format.write(temporary, content) as add:
            for done, item in enumerate(self._items(sampler, images), 1):
                add(item)
                progress(done, len(images))
        return MadeShard(shard, True, len(images), perf_counter() - start)

    def _opened(self) -> Sampler:
        if self._sampler is None:
            images = self._job.images
            sampler = Sampler.open(Bundle.open(self._job.bundle), **self._job.options)
            try:
                how: dict[str, Any] = {"guidance": images.guidance, "denoise": images.denoise}
                different = 1 if images.condition is None else len(images.condition)
                sampler.check(different, images.condition, images.null_condition, **how)
                asked = asked_for(self._job, sampler.bundle)
                claim_folder(self._job, asked, sampler.variant.name, sampler.backend.name)
            except BaseException:
                sampler.close()
                raise
            self._sampler = sampler
        return self._sampler

    def _items(self, sampler: Sampler, images: range) -> Iterator[Item]:
        wanted = self._job.images
        denoise = choose_denoising(sampler.manifest, wanted.denoise)
        for start in range(images.start, images.stop, self._job.batch):
            batch = images[start - images.start :][: self._job.batch]
            x = sampler.generate(
                sampler.noise(len(batch), wanted.seed, wanted.temperature, first=batch.start),
                self._features(sampler, wanted.conditions(batch)),
                wanted.null_condition,
                guidance=wanted.guidance,
                denoise=denoise,
                denoising_rate=wanted.denoising_rate,
            )
            if sampler.manifest.output == "images":
                contents = [png_bytes(image) for image in sampler.to_images(x, denoise=denoise)]
            else:
                contents = [_npy_bytes(each) for each in x]
            for image, content in zip(batch, contents, strict=True):
                yield Item(wanted.facts(image), content)

    def _features(self, sampler: Sampler, condition: Condition | None) -> Condition | None:
        """Condition tokens in the place of captions; those of a caption that comes again soon are kept."""
        if condition is None or isinstance(condition, np.ndarray):
            return condition
        known = {caption: self._encoded[caption] for caption in condition if caption in self._encoded}
        new = [caption for caption in dict.fromkeys(condition) if caption not in known]
        if new:
            made = dict(zip(new, sampler.encode_captions(new), strict=True))
            if len(self._encoded) + len(new) > MOST_ENCODED:
                self._encoded.clear()
            self._encoded |= made
            known |= made
        return np.stack([known[caption] for caption in condition])


def _npy_bytes(array: NDArray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
