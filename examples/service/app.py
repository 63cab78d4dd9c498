"""A web service of one's own over a bundle: FastAPI and a pool of samplers.

    pip install '.[cpu,serve]'
    BUNDLE=digits.bundle uvicorn --app-dir examples/service app:app
    curl 'http://127.0.0.1:8000/image?label=3&seed=7' -o three.png

`starflow serve` does more: it merges requests into batches, streams previews, counts, and speaks two known protocols.
"""

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Response
from PIL import Image

from starflow.runtime import SamplerPool, StarflowError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the bundle when the service starts, and close it when it ends."""
    with SamplerPool.open(os.environ["BUNDLE"], size=2) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/image", response_class=Response)
def image(label: str, seed: int = 0, guidance: float = 2.0) -> Response:
    """One image of a class, as PNG. FastAPI runs this in a thread, so two requests are served at the same time."""
    pool: SamplerPool = app.state.pool
    try:
        (pixels,) = pool.sample([label], seed=seed, guidance=guidance)
    except StarflowError as error:
        raise HTTPException(400, str(error)) from None
    png = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(png, "png")
    return Response(png.getvalue(), media_type="image/png")
