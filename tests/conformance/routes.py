"""What recorded calls run through."""

from importlib.util import find_spec

import pytest

# PyTorch; ONNX Runtime's CPU on every lowering; the portable lowering through TensorRT's parser and the network interpreter.
ROUTES = ("torch", "portable", "cpu", "cuda", "network")
# The C++ library on the cpu lowering, which has to be built first, so it runs if it is asked for.
ASKED_FOR = ("cpp",)
# What an operation runs through; all others run through PyTorch only.
OPERATION_ROUTES = {
    "reverse": ROUTES + ASKED_FOR,
    "score_denoise": ("torch", "portable"),
    "denoiser": ("torch", "portable"),
}
PARSER = "tensorrt_rtx"


def chosen_routes(config: pytest.Config) -> tuple[str, ...]:
    """The routes asked for by `--through`; by default those whose software is here."""
    asked = config.getoption("through", default=None)
    return asked or tuple(route for route in ROUTES if route != "network" or find_spec(PARSER))
