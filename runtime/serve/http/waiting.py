"""Waiting for a batcher, and for an order while watching whether its client is still there."""

import asyncio
from typing import Any

from numpy.typing import NDArray
from starlette.requests import Request

from starflow.runtime.serve.batcher import Batcher
from starflow.runtime.serve.http.body import RefusedError
from starflow.runtime.serve.order import Ticket
from starflow.runtime.serve.served_model import ServedModel

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
