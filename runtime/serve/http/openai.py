"""OpenAI's endpoint for images, `POST /v1/images/generations`, with the fields that mean something here.

https://platform.openai.com/docs/api-reference/images/create
"""

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from starflow.runtime.plain.errors import StarflowError
from starflow.runtime.plain.images import picture
from starflow.runtime.plain.limits import MOST_DIGITS
from starflow.runtime.plain.validation import one_line
from starflow.runtime.serve.batcher import Batcher
from starflow.runtime.serve.http.body import RefusedError, parse_object, read_body
from starflow.runtime.serve.http.failures import status_of
from starflow.runtime.serve.http.waiting import batcher_of, finished
from starflow.runtime.serve.named_tensors import checked_guidance, chosen_seeds
from starflow.runtime.serve.order import Order
from starflow.runtime.serve.served_model import ServedModel

MOST_IMAGES = 64
MOST_PROMPT = 4096  # characters; no model reads as many
MOST_BODY = 64 << 10
PNG_LEVEL = 1  # of zlib; the default, 6, takes twice as long for files that are a tenth smaller


class ImagesRequest(BaseModel):
    """The body of `POST /v1/images/generations`. `seed`, `guidance` and `temperature` are starflow's own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(max_length=MOST_PROMPT, description="caption, or name or number of a class; empty for neither")
    model: str | None = Field(None, description="a model of this server (default: its first)")
    n: int = Field(1, ge=1, le=MOST_IMAGES, description="number of images")
    size: str | None = Field(None, max_length=20, description="a size of the model, WIDTHxHEIGHT, or auto")
    response_format: Literal["b64_json"] = Field("b64_json", description="images come in the answer")
    output_format: Literal["png"] = "png"
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: str | None = Field(None, max_length=256, description="not used")
    stream: bool = False
    partial_images: int | None = Field(None, ge=0, le=64, description="with stream: previews of an unfinished image")
    seed: int | None = Field(None, ge=0, lt=10**MOST_DIGITS, description="of the first image; the next has the next")
    guidance: float = Field(0.0, ge=0, description="classifier-free guidance weight")
    temperature: float = Field(1.0, gt=0, le=100, description="standard deviation of the noise")


def openai_routes(models: Mapping[str, ServedModel]) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    schema = {"content": {"application/json": {"schema": ImagesRequest.model_json_schema()}}, "required": True}

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        """The models of this server."""
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "starflow"} for name in models]
        return {"object": "list", "data": data}

    @router.post("/images/generations", openapi_extra={"requestBody": schema})
    async def generate(request: Request) -> Response:
        """Make images from a caption or a class; with `stream`, send previews as server-sent events."""
        asked = _parsed(await read_body(request, MOST_BODY))
        model = models.get(asked.model or next(iter(models)))
        if model is None:
            raise RefusedError(404, f"model {asked.model!r}: this server has {', '.join(models)}", parameter="model")
        batcher = await batcher_of(model, asked.size)
        order, size = _order(model, asked), asked.size if asked.size in model.sizes else next(iter(model.sizes))
        if asked.stream:
            return await _streamed(batcher, order, asked, size)
        images = await finished(request, batcher.submit(order))
        encoded = await asyncio.to_thread(lambda: [encode_png(image) for image in images])
        data = [{"b64_json": text, "seed": seed} for text, seed in zip(encoded, order.seeds, strict=True)]
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": "png", "size": size})

    return router


def encode_png(image: NDArray[np.uint8]) -> str:
    """An image, uint8 [H, W, C], as a PNG in base64."""
    file = io.BytesIO()
    picture(image).save(file, "png", compress_level=PNG_LEVEL)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _parsed(content: bytes) -> ImagesRequest:
    try:
        return ImagesRequest.model_validate(parse_object(content), strict=True)
    except ValidationError as error:
        raise RefusedError(400, one_line(error, tuple(ImagesRequest.model_fields))) from None


def _order(model: ServedModel, asked: ImagesRequest) -> Order:
    if model.manifest.output != "images":
        raise RefusedError(400, f"{model.name} makes {model.manifest.output}, not images; use /v2/models/{model.name}")
    if model.takes == "features":
        raise RefusedError(400, f"{model.name} takes condition tokens; use /v2/models/{model.name}/infer")
    prompt = asked.prompt if model.takes == "captions" else asked.prompt.strip()
    if model.takes == "nothing" and prompt:
        raise RefusedError(400, f"{model.name} is unconditional; send an empty prompt", parameter="prompt")
    has_condition = model.takes == "captions" or bool(prompt)
    return Order(
        [prompt] * asked.n if has_condition else None,
        chosen_seeds(asked.seed, asked.n),
        checked_guidance([asked.guidance] * asked.n),
        asked.temperature,
    )


async def _streamed(batcher: Batcher, order: Order, asked: ImagesRequest, size: str) -> Response:
    """Server-sent events: `image_generation.partial_image` for chosen flow blocks, and `.completed` for each image made."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[dict[str, Any], NDArray[np.uint8]]]()
    blocks = len(getattr(batcher.pool.manifest, "blocks", ()))
    chosen = _evenly(list(range(blocks - 1, 0, -1)), asked.partial_images or 0)

    common = {"size": size, "quality": "auto", "background": "opaque", "output_format": "png"}
    none = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    usage = {**none, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}

    def tell(kind: str, index: int, pixels: NDArray[np.uint8], **more: object) -> None:
        event = {"type": kind, "index": index, "created_at": int(time.time()), **common, **more}
        loop.call_soon_threadsafe(events.put_nowait, (event, pixels))  # encoded while the sampler goes on

    def on_preview(index: int, block: int, pixels: NDArray[np.uint8]) -> None:
        tell("image_generation.partial_image", index, pixels, partial_image_index=chosen.index(block))

    def on_image(index: int, pixels: NDArray[np.uint8]) -> None:
        tell("image_generation.completed", index, pixels, seed=order.seeds[index], usage=usage)

    order = replace(order, preview_blocks=frozenset(chosen))
    ticket = batcher.submit(order, on_preview if chosen else None, on_image)

    async def stream() -> AsyncIterator[str]:
        done = asyncio.wrap_future(ticket.future)
        try:
            while not (done.done() and events.empty()):
                getting = asyncio.ensure_future(events.get())
                both: list[asyncio.Future[Any]] = [getting, done]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    event, pixels = getting.result()
                    yield _event({**event, "b64_json": await asyncio.to_thread(encode_png, pixels)})
                getting.cancel()
            try:
                done.result()
            except (StarflowError, asyncio.CancelledError) as error:
                message = str(error) or "the service is going down; ask another one"
                kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
                said = {"message": message, "type": kind, "code": None, "param": None}
                yield _event({"type": "error", "error": said})
        finally:
            ticket.cancel()  # a client that goes away ends the stream here

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(content: Mapping[str, Any]) -> str:
    return f"event: {content['type']}\ndata: {json.dumps(content)}\n\n"


def _evenly(blocks: list[int], count: int) -> list[int]:
    """At most `count` of the blocks, evenly spread, the last ones rather than the first."""
    count = min(count, len(blocks))
    return [blocks[len(blocks) * (each + 1) // count - 1] for each in range(count)]
