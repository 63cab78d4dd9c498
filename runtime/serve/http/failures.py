"""What a client is told when something goes wrong: a status and one sentence, never a traceback."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from starflow.runtime.plain.errors import NotFiniteError, StarflowError, UsageError
from starflow.runtime.serve.batcher import ClosedError, QueueFullError
from starflow.runtime.serve.error_sentence import logger, sentence
from starflow.runtime.serve.http.body import RefusedError


def status_of(error: BaseException) -> int:
    """The HTTP status for an error."""
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, QueueFullError):
        return 429
    if isinstance(error, ClosedError | asyncio.CancelledError):
        return 503
    if isinstance(error, UsageError):
        return 400
    return 422 if isinstance(error, NotFiniteError) else 500


def answer(request: Request, error: Exception) -> Response:
    """The answer for an error, in the form that the clients of the path expect."""
    status, message = status_of(error), str(error)
    if status == 500 and not isinstance(error, StarflowError):
        message = sentence(error)
    elif status == 500:
        logger.error("%s", message)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFullError) else {}
    if request.url.path.startswith("/v1/"):
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        parameter = error.parameter if isinstance(error, RefusedError) else None
        content: object = {"message": message, "type": kind, "param": parameter, "code": None}
        return JSONResponse({"error": content}, status, headers)
    return JSONResponse({"error": message}, status, headers)
