"""Waiting for a batcher, and for an order while watching whether its client is still there."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from starlette.requests import Request

from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.serve.batcher import Batcher
from starflow.runtime.serve.http.body import RefusedError
from starflow.runtime.serve.order import Ticket
from starflow.runtime.serve.served_model import ServedModel

MOST_GUIDANCE = 1000.0  # far above what makes pictures; the next numbers make NaN of every model
CLIENT_GONE = 499  # nobody reads it; nginx logs it so


async def batcher_of(model: ServedModel, size: Any) -> Batcher:
    """The batcher for images of a size, see `ServedModel.batcher`; others are served while it is loaded."""
    loaded = model.loaded_batcher(size)
    return await asyncio.to_thread(model.batcher, size) if loaded is None else loaded


async def finished(request: Request, ticket: Ticket) -> NDArray:
    """The images of an order; it is given up when the client goes away.

    Raises:
        RefusedError: the client has gone, or the server gave the order up.
        StarflowError: the order failed.
    """
    done, gone = asyncio.wrap_future(ticket.future), asyncio.ensure_future(_disconnected(request))
    both: list[asyncio.Future[Any]] = [done, gone]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise RefusedError(CLIENT_GONE, "the client closed the connection")
        if done.cancelled():
            raise RefusedError(503, "the service is going down; ask another one")
        return done.result()
    finally:
        ticket.cancel()  # does nothing to an order that is over
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def chosen_seeds(given: int | None, count: int) -> tuple[int, ...]:
    """A seed for each image: consecutive ones from the one that was given, or from a random one."""
    first = secrets.randbits(32) if given is None else given
    return tuple(range(first, first + count))


def checked_guidance(weights: Sequence[float]) -> tuple[Guidance, ...]:
    """Weights as the sampler takes them.

    Raises:
        RefusedError: one is far from any use.
        UsageError: one is negative.
    """
    for weight in weights:
        if weight > MOST_GUIDANCE:
            raise RefusedError(400, f"guidance {weight:g}: give at most {MOST_GUIDANCE:g}", parameter="guidance")
    return tuple(Guidance(float(weight)) for weight in weights)
