"""Refuses requests for images while the queues are full, before anything of them is read."""

from collections.abc import Iterable, Mapping

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from starflow.runtime.serve.served_model import ServedModel


class Shedding:
    """A layer of the application, below `Edge`. What it refuses costs the process less than half of what routes would cost.

    Args:
        models: By name.
        routes: Those of the application; the ones with POST ask for images. A parameter `name` of a path is that of a model;
            without one, the request may be for any model.
    """

    def __init__(self, app: ASGIApp, models: Mapping[str, ServedModel], routes: Iterable[BaseRoute]) -> None:
        self._app, self._models = app, models
        self._routes = [route for route in routes if isinstance(route, Route) and "POST" in (route.methods or ())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for route in self._routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope["route"] = route  # for the metrics
                    self._check_room(found["path_params"].get("name"))
                    break
        await self._app(scope, receive, send)

    def _check_room(self, name: str | None) -> None:
        """See that a model, or any of them, takes images; QueueFullError if not."""
        named = self._models.get(name or "")
        asked = [named] if named else list(self._models.values())
        refusals = [refusal for model in asked if (refusal := model.refusal())]
        if len(refusals) == len(asked):
            raise min(refusals, key=lambda refusal: refusal.retry_after)
