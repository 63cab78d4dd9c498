"""The Open Inference Protocol v2 over REST, as KServe, Triton and their clients speak it.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from starflow.runtime.plain.validation import one_line
from starflow.runtime.serve.http.body import RefusedError, parse_object, read_body
from starflow.runtime.serve.http.tensors import InferRequest, read_tensors, write_tensor
from starflow.runtime.serve.http.waiting import batcher_of, checked_guidance, chosen_seeds, finished
from starflow.runtime.serve.order import Order
from starflow.runtime.serve.served_model import ServedModel

HEADER = "Inference-Header-Content-Length"
MOST_JSON = 2 << 20  # bytes, which take a quarter of a second to read; what is larger comes as bytes
OUTPUTS = {"image": "images", "latent": "latents"}


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
    manifest, given = model.manifest, model.manifest.conditioning
    condition = {
        "captions": [("caption", "BYTES", [-1])],
        "classes": [("label", "INT64", [-1])],
        "nothing": [],
    }.get(model.takes, [])
    if given.kind == "features":
        condition.append(("condition", "FP32", [-1, given.tokens, given.width]))
    options = [("seed", "INT64", [-1]), ("guidance", "FP32", [-1]), ("temperature", "FP32", [1])]
    outputs = [("latent", "FP32", [-1, *manifest.model.data_shape])]
    if _makes_images(model):
        pixels = manifest.output_shape
        outputs.insert(0, ("image", "UINT8", [-1, *pixels[1:], pixels[0]]))

    def tensors(entries: list[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in entries]

    return {
        "name": model.name,
        "versions": ["1"],
        "platform": "starflow",
        "inputs": tensors([*condition, *options]),
        "outputs": tensors(outputs),
    }


def _makes_images(model: ServedModel) -> bool:
    return model.manifest.output == "images"


def _known(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    if name not in models:
        raise RefusedError(404, f"model {name!r}: this server has {', '.join(models)}")
    return models[name]


def _understood(model: ServedModel, content: bytes, header: str | None) -> tuple[InferRequest, str, Order]:
    """A request, the output that it wants, and the order that it is."""
    asked, binary = _split(content, header)
    wanted = [output.name for output in asked.outputs] or ["image" if _makes_images(model) else "latent"]
    if len(wanted) > 1:
        raise RefusedError(400, f"outputs {', '.join(wanted)}: ask for one of {', '.join(OUTPUTS)}")
    return asked, wanted[0], _order(model, read_tensors(asked.inputs, binary), wanted[0])


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


def _order(model: ServedModel, tensors: dict[str, NDArray], output: str) -> Order:
    known = [tensor["name"] for tensor in described(model)["inputs"]]
    for name in tensors:
        if name not in known:
            raise RefusedError(400, f"input {name!r}: {model.name} takes {', '.join(known)}", parameter=name)
    if output not in OUTPUTS or (output == "image" and not _makes_images(model)):
        outputs = [tensor["name"] for tensor in described(model)["outputs"]]
        raise RefusedError(400, f"output {output!r}: {model.name} makes {', '.join(outputs)}", parameter=output)
    given = [name for name in ("label", "caption", "condition") if name in tensors]
    if len(given) > 1:
        raise RefusedError(400, f"inputs {' and '.join(given)} exclude each other")
    counting = [tensors[name] for name in (*given, "seed", "guidance") if name in tensors]
    count = max((len(values) for values in counting if values.ndim), default=1)
    if count > model.most_images:
        raise RefusedError(400, f"{count} images in one request; ask for at most {model.most_images}")
    condition = _each(tensors, given[0], count) if given else None
    if condition is not None and condition.ndim == 1:
        condition = condition.tolist()
    seeds = _each(tensors, "seed", count) if "seed" in tensors else None
    weights = _each(tensors, "guidance", count) if "guidance" in tensors else np.zeros(count)
    temperature = _each(tensors, "temperature", 1)[0] if "temperature" in tensors else 1.0
    if weights.dtype.kind not in "iuf" or (seeds is not None and seeds.dtype.kind not in "iu"):
        raise RefusedError(400, "seed is INT64 and guidance FP32")
    return Order(
        condition,
        chosen_seeds(None, count) if seeds is None else tuple(int(seed) for seed in seeds),
        checked_guidance(weights.tolist()),
        float(temperature),
        output=OUTPUTS[output],  # type: ignore[arg-type]
    )


def _each(tensors: Mapping[str, NDArray], name: str, count: int) -> NDArray:
    """A tensor with one value for each of N images; one value is for all of them."""
    values = tensors[name]
    if values.ndim == 2 and values.shape[1] == 1 and name != "condition":
        values = values[:, 0]  # Triton's clients send [N, 1] for what it batches
    if not values.ndim or len(values) not in (1, count) or (values.ndim != 1 and name != "condition"):
        raise RefusedError(400, f"input {name} has shape {list(values.shape)} for {count} images", parameter=name)
    return np.repeat(values, count, axis=0) if len(values) == 1 else values


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
