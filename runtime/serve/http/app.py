"""The application: routes, and what becomes of their errors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from starflow.runtime.plain.errors import StarflowError
from starflow.runtime.serve.http.body import RefusedError
from starflow.runtime.serve.http.edge import Edge
from starflow.runtime.serve.http.failures import answer
from starflow.runtime.serve.http.inference import inference_routes
from starflow.runtime.serve.http.metrics import Metrics
from starflow.runtime.serve.http.openai import openai_routes
from starflow.runtime.serve.http.shedding import Shedding
from starflow.runtime.serve.served_model import ServedModel

PAGE = Path(__file__).parent / "page.html"


def create_app(models: Mapping[str, ServedModel], metrics: Metrics, version: str, key: str | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        models: By the name that requests call them; at least one.
        key: See `Edge`.
    """
    app = FastAPIOffline(
        title="starflow",
        version=version,
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/files",
    )
    routers = openai_routes(models), inference_routes(models, version)
    for router in routers:
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE, media_type="text/html")

    @app.get("/metrics", tags=["Operations"])
    async def read_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/models", tags=["Operations"])
    async def describe_models() -> list[dict[str, Any]]:
        """What the page needs to know of each model."""
        return [_described(model) for model in models.values()]

    async def refused(request: Request, error: Exception) -> Response:
        return answer(request, error)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(request, RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    app.add_exception_handler(StarflowError, refused)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_middleware(Shedding, models=models, routes=[route for router in routers for route in router.routes])
    app.add_middleware(Edge, metrics=metrics, key=key)
    return app


def _described(model: ServedModel) -> dict[str, Any]:
    names = model.manifest.conditioning.class_names
    classes = model.manifest.conditioning.num_classes if model.takes == "classes" else 0
    return {
        "name": model.name,
        "takes": model.takes,
        "classes": list(names or map(str, range(min(classes, 1000)))) if classes else [],
        "guided": model.manifest.guided,
        "sizes": list(model.sizes),
        "makes": model.manifest.output,
        "batch": model.manifest.batch,
    }
