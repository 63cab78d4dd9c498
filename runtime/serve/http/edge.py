"""What every request passes first: it must bring the key, it is counted, and whatever it breaks is answered."""

import secrets
import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starflow.runtime.serve.http.body import RefusedError
from starflow.runtime.serve.http.failures import answer
from starflow.runtime.serve.http.metrics import Metrics

OPEN_PATHS = ("/", "/v2/health/live", "/v2/health/ready")  # what a browser and an orchestrator ask without a key


class Edge:
    """The outermost layer of the application.

    Args:
        key: What clients send as `Authorization: Bearer KEY`; None serves everybody.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, key: str | None) -> None:
        self._app, self._metrics, self._key = app, metrics, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, begun = Request(scope, receive), time.perf_counter()
        status = 0  # not answered

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if not self._admits(request):
                error = RefusedError(401, "send the server's key as Authorization: Bearer KEY")
                await answer(request, error)(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        except Exception as error:
            response = answer(request, error)
            if not status:
                await response(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.on_request(route, status, time.perf_counter() - begun)

    def _admits(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {self._key}"
        return (
            self._key is None
            or request.url.path in OPEN_PATHS
            or secrets.compare_digest(given.encode(), wanted.encode())
        )
