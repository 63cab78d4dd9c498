"""How far apart two ways of running a bundle may be, and why (docs/verification.md gives the measurements behind it)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from starflow.runtime.plain.errors import UsageError

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8"]
Kind = Literal["given", "block", "sample", "denoise", "text", "pixels", "student"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Measure = Literal["largest", "relative"]


@dataclass(frozen=True)
class Tolerance:
    """A bound on an error.

    `largest` bounds every element, |found - expected| <= value * max(1, |expected|); `relative` bounds the whole,
    |found - expected| <= value * |expected| in the Euclidean norm. `chosen` tells that the user set it.
    """

    measure: Measure
    value: float
    chosen: bool = False


# With every input given, what is left is the arithmetic of one pass. With tokens fed back it is amplified, token by token, by
# as much as the model amplifies any disturbance: single elements then say little, and the norm of the error is bounded. Each is
# two to five times the worst of what was measured on right implementations; bf16 rounds eight times as coarsely as fp16.
DEFAULTS: dict[tuple[Precision, Kind], Tolerance] = {
    ("fp32", "given"): Tolerance("largest", 5e-5),
    ("fp32", "block"): Tolerance("relative", 1e-4),
    ("fp32", "sample"): Tolerance("relative", 1e-4),
    ("fp16", "given"): Tolerance("relative", 5e-3),
    ("fp16", "block"): Tolerance("relative", 5e-2),
    ("fp16", "sample"): Tolerance("relative", 5e-2),
    ("bf16", "given"): Tolerance("relative", 4e-2),
    ("bf16", "block"): Tolerance("relative", 4e-1),
    ("bf16", "sample"): Tolerance("relative", 4e-1),
    # Of what a denoiser adds: its inputs are given, it computes in float32, so what is left is the rounding of weights.
    ("fp32", "denoise"): Tolerance("relative", 1e-5),
    ("fp16", "denoise"): Tolerance("relative", 5e-3),
    ("bf16", "denoise"): Tolerance("relative", 4e-2),
    # Of an autoencoder's graphs, over the weights of its folder; fp16 where TensorRT computes products in it.
    ("fp32", "pixels"): Tolerance("relative", 1e-4),
    ("fp16", "pixels"): Tolerance("relative", 5e-3),
    # Of the features of captions; fp16 where weights are stored so and nothing else is rounded, or TensorRT computes products in it.
    ("fp32", "text"): Tolerance("relative", 1e-4),
    ("fp16", "text"): Tolerance("relative", 5e-3),
    # Of the tokens that a student makes, whose weights are float32; fp16 where TensorRT computes products in it.
    ("fp32", "student"): Tolerance("relative", 1e-4),
    ("fp16", "student"): Tolerance("relative", 5e-3),
    # Quantised weights are an error that was chosen; these find a broken variant, `starflow calibrate` measures a good one.
    ("int8", "given"): Tolerance("relative", 2e-2),
    ("int8", "block"): Tolerance("relative", 5e-2),
    ("int8", "sample"): Tolerance("relative", 5e-2),
    ("int4", "given"): Tolerance("relative", 1e-1),
    ("int4", "block"): Tolerance("relative", 2e-1),
    ("int4", "sample"): Tolerance("relative", 2e-1),
    ("fp8", "given"): Tolerance("relative", 1e-1),
    ("fp8", "block"): Tolerance("relative", 2e-1),
    ("fp8", "sample"): Tolerance("relative", 2e-1),
    ("int8", "student"): Tolerance("relative", 5e-2),
}

Tolerances = dict[tuple[Precision, Kind], Tolerance]


def tolerances(changes: Sequence[str] = ()) -> Tolerances:
    """The defaults with the user's changes, each such as "fp16.sample=0.05", or UsageError."""
    chosen = dict(DEFAULTS)
    names = {f"{precision}.{kind}": (precision, kind) for precision, kind in DEFAULTS}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in names:
            raise UsageError(f"--tolerance {change}: give PRECISION.KIND=VALUE with one of {', '.join(names)}")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 < value < float("inf"):
            raise UsageError(f"--tolerance {change}: {text!r} is not a positive number")
        key = names[name]
        chosen[key] = Tolerance(chosen[key].measure, value, chosen=True)
    return chosen
