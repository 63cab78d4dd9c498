"""Reading what a client sends, no more and no longer than a server can bear."""

import asyncio
from typing import Any

from starlette.requests import Request

from starflow.runtime.plain.json_text import parse_json

MOST_BODY = 64 << 20  # bytes; condition tokens of 64 images of 128 x 2048 float32 are as many
BODY_SECONDS = 20.0  # for a whole body; whoever needs longer holds a connection on purpose


class RefusedError(Exception):
    """A request that is answered by a status and one sentence."""

    def __init__(self, status: int, message: str, *, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.parameter = status, parameter


async def read_body(request: Request, most: int = MOST_BODY) -> bytes:
    """The body of a request.

    Raises:
        RefusedError: it is too large, or takes too long to come.
    """
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts.append(part)
                if sum(map(len, parts)) > most:
                    raise RefusedError(413, f"the request is larger than {most:,} bytes")
    except TimeoutError:
        raise RefusedError(408, f"the request did not arrive within {BODY_SECONDS:g} s") from None
    return b"".join(parts)


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in a body; RefusedError if it is none."""
    try:
        found = parse_json(content.decode())
    except UnicodeDecodeError:
        raise RefusedError(400, "the request is not UTF-8") from None
    except ValueError as error:
        raise RefusedError(400, f"the request is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError(400, f"the request is JSON, but {type(found).__name__}, not an object")
    return found
