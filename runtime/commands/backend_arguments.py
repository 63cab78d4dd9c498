"""The arguments by which commands choose what runs a bundle."""

import argparse
from typing import Any


def add_backend_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare --backend, --provider and --threads."""
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="{auto,onnxruntime,tensorrt}",
        help="what runs the bundle (default: tensorrt where there is a GPU with engines for it, else onnxruntime)",
    )
    parser.add_argument(
        "--provider",
        default="cpu",
        metavar="{cpu,cuda,tensorrt}",
        help="ONNX Runtime's execution provider (default: cpu); the others need onnxruntime-gpu",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="threads within an operator on the CPU (default: one a core)"
    )


def add_plan_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --plan."""
    parser.add_argument(
        "--plan",
        default="auto",
        metavar="auto|sequential|FILE",
        help="how tokens are decoded: the plan stored by `starflow calibrate --plan`, if any (default); one by one; or as a "
        "plan's JSON file says",
    )


def backend_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was chosen, as `Sampler.open` takes it."""
    return {"backend": arguments.backend, "provider": arguments.provider, "threads": arguments.threads}
