"""A bounded queue of orders, and workers that merge what waits into batches."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import NDArray

from starflow.runtime.bundle.bytes_read import pass_bytes
from starflow.runtime.plain.errors import StarflowError, UsageError
from starflow.runtime.sampler import Sampler
from starflow.runtime.sampler_pool import SamplerPool
from starflow.runtime.serve.merged import AbandonedError, generate_merged
from starflow.runtime.serve.order import OnImage, OnPreview, Order, Ticket

# Clients that ask again at once are waited for so long, as a part of the time of their batch: without it, eight clients settle
# into two half-full batches in turn.
RETURNING = 0.2
MEMORY_OF_SPEED = 0.8  # weight of the past in the mean time of an image


class QueueFullError(StarflowError):
    """The queue takes no more. `retry_after` is about when it will, in whole seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} images are waiting, and the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class ClosedError(StarflowError):
    """The service is going down and takes no more orders."""


@dataclass(frozen=True)
class BatchReport:
    """One batch that ran.

    Attributes:
        images, size: Images in it, and how many it could have held.
        waited: Seconds that each image waited for it.
        flow_seconds, decode_seconds: Time of the flow, with captions, previews and denoising, and from data to pixels.
        read_bytes: Bytes of weights and caches that the flow had to read.
    """

    images: int
    size: int
    waited: tuple[float, ...]
    flow_seconds: float
    decode_seconds: float
    read_bytes: int


@dataclass(frozen=True)
class Piece:
    """One image of an order."""

    ticket: Ticket
    index: int


class Batcher:
    """Runs orders on the samplers of a pool, each in a thread of its own.

    A worker that is free takes the images that wait, in the order they came, as many as a batch holds and of one kind. If they
    do not fill it, it waits a little for more, and after a batch a little longer for its clients to come back. Merging
    changes no image, see `generate_merged`.

    Args:
        pool: Its samplers; the batcher owns it from now on.
        max_waiting: Number of images that may wait.
        patience: Seconds that an image waits for others to fill its batch.
        on_batch: Called by a worker after each batch.
    """

    def __init__(
        self,
        pool: SamplerPool,
        *,
        max_waiting: int,
        patience: float = 0.005,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        self._pool, self._max_waiting, self._patience, self._on_batch = pool, max_waiting, patience, on_batch
        self._queue: deque[Ticket] = deque()
        self._unfinished: set[Ticket] = set()
        self._changed = threading.Condition()
        self._is_open = True
        self._crowd, self._return = 0, 0.0  # images that are expected back after a batch, and until when
        self._image_seconds = 0.0  # mean time of an image, all workers together; 0 before the first batch
        self._pass_bytes = _pass_bytes(pool)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(pool.size)]
        for thread in self._threads:
            thread.start()

    @property
    def pool(self) -> SamplerPool:
        return self._pool

    @property
    def waiting(self) -> int:
        """Number of images in the queue."""
        with self._changed:
            return self._waiting()

    def submit(self, order: Order, on_preview: OnPreview | None = None, on_image: OnImage | None = None) -> Ticket:
        """Put an order into the queue; see `Ticket` for what is called meanwhile.

        Raises:
            UsageError: it does not fit the bundle, or is larger than the queue.
            QueueFullError: too many images are waiting.
            ClosedError: the batcher is closed.
        """
        self._check_open()
        self._pool.check(order.count, order.condition, guidance=order.guidance, denoise=order.denoise)
        if order.count > self._max_waiting:
            raise UsageError(f"{order.count} images in one request; ask for at most {self._max_waiting}")
        with self._changed:
            self._check_open()
            if refusal := self._refusal(order.count):
                raise refusal
            ticket = Ticket(order, time.monotonic(), on_preview, on_image)
            self._queue.append(ticket)
            self._unfinished.add(ticket)
            self._changed.notify_all()
        ticket.future.add_done_callback(lambda _: self._forget(ticket))
        return ticket

    def refusal(self) -> QueueFullError | None:
        """Why not even one image may join the queue now; None if one may."""
        with self._changed:
            return self._refusal(1)

    def close(self, timeout: float | None = None) -> None:
        """Finish what was ordered, then close the pool; a second call does nothing.

        Args:
            timeout: Seconds after which orders that are not done fail; None waits for all of them.
        """
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        with self._changed:
            late = list(self._unfinished)
        for ticket in late:
            ticket.cancel()
        for thread in self._threads:  # a batch that nobody waits for ends at its next report
            thread.join()
        self._pool.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError("the service is going down; ask another one")

    def _refusal(self, count: int) -> QueueFullError | None:
        waiting = self._waiting()
        if waiting + count <= self._max_waiting:
            return None
        return QueueFullError(waiting, max(1, math.ceil(waiting * self._image_seconds)))

    def _waiting(self) -> int:
        return sum(_left(ticket) for ticket in self._queue)

    def _forget(self, ticket: Ticket) -> None:
        """Free the place of an order that is over."""
        with self._changed:
            self._unfinished.discard(ticket)
            if ticket in self._queue:
                self._queue.remove(ticket)

    # The workers

    def _work(self) -> None:
        with self._pool.sampler() as sampler:
            while pieces := self._take(sampler.manifest.batch):
                self._run(sampler, pieces)

    def _take(self, size: int) -> list[Piece]:
        """The next images, in one batch of at most `size`; none when the batcher is closed and all is done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or not self._is_open)
                if not self._queue:
                    return []
                ready = self._queue[0].placed + self._patience
                self._changed.wait_for(lambda: self._fills(size), max(0.0, ready - time.monotonic()))
                back = max(0.0, self._return - time.monotonic())
                self._changed.wait_for(lambda: self._fills(min(size, self._crowd)), back)
                if pieces := self._taken(size):  # else another worker was faster, or the client went away
                    return pieces

    def _fills(self, size: int) -> bool:
        """Whether waiting for so many images gains nothing more."""
        return not self._is_open or sum(_left(ticket) for ticket in self._alike()) >= size

    def _alike(self) -> list[Ticket]:
        """The orders that may share a batch with the first."""
        if not self._queue:
            return []
        return [ticket for ticket in self._queue if ticket.order.kind == self._queue[0].order.kind]

    def _taken(self, size: int) -> list[Piece]:
        pieces: list[Piece] = []
        for ticket in self._alike():
            count = min(_left(ticket), size - len(pieces))
            pieces += [Piece(ticket, ticket.taken + each) for each in range(count)]
            ticket.taken += count
        self._queue = deque(ticket for ticket in self._queue if _left(ticket))
        return pieces

    def _run(self, sampler: Sampler, pieces: list[Piece]) -> None:
        """Run a batch. If it fails, every order of it runs alone, so that no client answers for another one's numbers."""
        try:
            self._sample(sampler, pieces)
        except AbandonedError:
            pass
        except Exception as error:
            tickets = dict.fromkeys(piece.ticket for piece in pieces)
            if len(tickets) > 1 and isinstance(error, StarflowError):
                for ticket in tickets:
                    self._run(sampler, [piece for piece in pieces if piece.ticket is ticket])
            else:
                for ticket in tickets:
                    ticket.fail(error)

    def _sample(self, sampler: Sampler, pieces: list[Piece]) -> None:
        started, orders = time.monotonic(), [piece.ticket.order for piece in pieces]
        passes = Counter[int]()

        def progress(done: int, total: int) -> None:
            if all(piece.ticket.is_over for piece in pieces):
                raise AbandonedError

        progress(0, 1)
        data = generate_merged(
            sampler,
            [(piece.ticket.order, piece.index) for piece in pieces],
            on_block=self._previews(sampler, pieces),
            on_passes=lambda block, count: passes.update({block: count}),
            progress=progress,
        )
        sampled = time.monotonic()
        pictured = [row for row, order in enumerate(orders) if order.output == "images"]
        made: dict[int, NDArray] = {}
        if pictured:
            made.update(zip(pictured, sampler.to_images(data[pictured], denoise=orders[0].denoise), strict=True))
        for row, piece in enumerate(pieces):
            piece.ticket.deliver(piece.index, made.get(row, data[row]))
        ended = time.monotonic()
        waited = tuple(started - piece.ticket.placed for piece in pieces)
        self._note_batch(len(pieces), started, ended)
        size = min(size for size in sampler.manifest.batch_sizes if size >= len(pieces))
        read = sum(passes[block] * read for block, read in self._pass_bytes[size].items())
        self._on_batch(BatchReport(len(pieces), size, waited, sampled - started, ended - sampled, read))

    def _previews(self, sampler: Sampler, pieces: list[Piece]) -> Callable[[int, NDArray], None] | None:
        if all(piece.ticket.on_preview is None for piece in pieces):
            return None

        def on_block(block: int, data: NDArray) -> None:
            seen = [row for row, piece in enumerate(pieces) if piece.ticket.shows(block)]
            if not seen:
                return
            images = sampler.to_images(data[seen], denoise=pieces[0].ticket.order.denoise)
            for row, image in zip(seen, images, strict=True):
                piece = pieces[row]
                if piece.ticket.on_preview and not piece.ticket.is_over:
                    piece.ticket.on_preview(piece.index, block, image)

        return on_block

    def _note_batch(self, images: int, started: float, ended: float) -> None:
        """Learn from a batch how long an image takes, and how many clients there are."""
        seconds = (ended - started) / images / self._pool.size
        with self._changed:
            past = self._image_seconds or seconds
            self._image_seconds = MEMORY_OF_SPEED * past + (1 - MEMORY_OF_SPEED) * seconds
            self._crowd = images + self._waiting()
            self._return = ended + RETURNING * (ended - started)


def _pass_bytes(pool: SamplerPool) -> dict[int, dict[int, int]]:
    """For each batch size the bytes that a pass of each flow block reads."""
    found: dict[int, dict[int, int]] = {}
    for size in pool.manifest.batch_sizes:
        bundle = pool.bundle.at_batch(size)
        found[size] = pass_bytes(bundle.manifest, bundle.variant(pool.variant.name, pool.variant.lowering))
    return found


def _left(ticket: Ticket) -> int:
    """Number of its images that no worker has taken."""
    return 0 if ticket.is_over else ticket.order.count - ticket.taken
