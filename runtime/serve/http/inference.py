"""The Open Inference Protocol v2 over REST, as KServe, Triton and their clients speak it.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from starflow.runtime.plain.validation import one_line
from starflow.runtime.serve.http.body import RefusedError, parse_object, read_body
from starflow.runtime.serve.http.tensors import InferRequest, read_tensors, write_tensor
from starflow.runtime.serve.http.waiting import batcher_of, finished
from starflow.runtime.serve.named_tensors import OUTPUTS, inputs, outputs, read_order
from starflow.runtime.serve.order import Order
from starflow.runtime.serve.served_model import ServedModel

HEADER = "Inference-Header-Content-Length"
MOST_JSON = 2 << 20  # bytes, which take a quarter of a second to read; what is larger comes as bytes


def inference_routes(models: Mapping[str, ServedModel], version: str) -> APIRouter:
    """The routes under /v2."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    schema = {"content": {"application/json": {"schema": InferRequest.model_json_schema()}}, "required": True}

    @router.get("")
    async def server() -> dict[str, Any]:
        """What this server is."""
        return {"name": "starflow", "version": version, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Whether the models are loaded, which they are before the server listens."""
        return {"ready": True}

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/1")
    async def model(name: str) -> dict[str, Any]:
        """Inputs and outputs of a model."""
        return described(_known(models, name))

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/1/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        """Whether a model is loaded."""
        return {"name": _known(models, name).name, "ready": True}

    @router.post("/models/{name}/infer", openapi_extra={"requestBody": schema})
    @router.post("/models/{name}/versions/1/infer", include_in_schema=False)
    async def infer(name: str, request: Request) -> Response:
        """Sample. Tensors are JSON, or bytes behind the JSON."""
        model = _known(models, name)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, "compressed requests are not taken; send the body as it is")
        content, header = await read_body(request), request.headers.get(HEADER)
        asked, output, order = await asyncio.to_thread(_understood, model, content, header)
        batcher = await batcher_of(model, asked.parameters.get("size"))
        found = await finished(request, batcher.submit(order))
        return await asyncio.to_thread(_answer, model, asked, output, found)

    return router


def described(model: ServedModel) -> dict[str, Any]:
    """The metadata of a model."""
    parts = {"inputs": inputs(model.manifest), "outputs": outputs(model.manifest)}
    tensors = {
        part: [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
        for part, specs in parts.items()
    }
    return {"name": model.name, "versions": ["1"], "platform": "starflow", **tensors}


def _known(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    if name not in models:
        raise RefusedError(404, f"model {name!r}: this server has {', '.join(models)}")
    return models[name]


def _understood(model: ServedModel, content: bytes, header: str | None) -> tuple[InferRequest, str, Order]:
    """A request, the output that it wants, and the order that it is."""
    asked, binary = _split(content, header)
    wanted = [output.name for output in asked.outputs] or [outputs(model.manifest)[0].name]
    if len(wanted) > 1:
        raise RefusedError(400, f"outputs {', '.join(wanted)}: ask for one of {', '.join(OUTPUTS)}")
    tensors = read_tensors(asked.inputs, binary)
    order = read_order(model.manifest, tensors, wanted[0], name=model.name, most_images=model.most_images)
    return asked, wanted[0], order


def _split(content: bytes, header: str | None) -> tuple[InferRequest, bytes]:
    """The JSON of a request, and the bytes behind it."""
    length = len(content)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 12 and int(header) <= len(content)):
            raise RefusedError(400, f"{HEADER} {header!r}: the body has {len(content)} bytes; was it cut off?")
        length = int(header)
    if length > MOST_JSON:
        raise RefusedError(413, f"the JSON is larger than {MOST_JSON:,} bytes; send large tensors as bytes behind it")
    try:
        asked = InferRequest.model_validate(parse_object(content[:length]), strict=True)
    except ValidationError as error:
        raise RefusedError(400, one_line(error, tuple(InferRequest.model_fields))) from None
    return asked, content[length:]


def _answer(model: ServedModel, asked: InferRequest, name: str, values: NDArray) -> Response:
    chosen = next((output.parameters for output in asked.outputs if output.name == name), {})
    binary = chosen.get("binary_data", asked.parameters.get("binary_data_output", False)) is True
    described, content = write_tensor(name, values, binary=binary)
    answer = {"model_name": model.name, "model_version": "1", "outputs": [described]}
    if asked.id is not None:
        answer["id"] = asked.id
    if not binary:
        return JSONResponse(answer)
    head = json.dumps(answer).encode()
    return Response(head + content, media_type="application/octet-stream", headers={HEADER: str(len(head))})
