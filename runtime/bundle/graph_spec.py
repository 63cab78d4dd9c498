"""Files, graphs, and the inputs and outputs of graphs, as a manifest describes them."""

import math
from typing import Annotated, Literal

from pydantic import Field

from starflow.runtime.plain.validation import Part

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int8": 1}

Role = Literal[
    "position",
    "previous",
    "noise",
    "samples",
    "condition",
    "label",
    "guidance",
    "guidance_scale",
    "guidance_shift",
    "guidance_anneal",
    "inverse_temperature",
    "cache",
    "token",
    "pass",
    "passes",
    "x",
    "point",
    "total",
    "velocity",
    "ids",
    "mask",
    "features",
    "pixels",
    "latent",
    "score",
    "prediction",
]


class TensorSpec(Part):
    """An input or output of a graph.

    Attributes:
        shape: Sizes, with the string "S" for the number of tokens in a run.
        updated_by: For an input that is updated in place, the output that does so. Both must be bound to the same memory.
    """

    name: str
    dtype: Literal["float32", "float16", "bfloat16", "int64", "int8"]
    shape: tuple[Annotated[int, Field(gt=0)] | Literal["S"], ...]
    role: Role
    updated_by: str | None = None


def fixed_shape(spec: TensorSpec, count: int = 1) -> tuple[int, ...]:
    """The shape of a tensor in a run of `count` tokens."""
    return tuple(count if isinstance(size, str) else size for size in spec.shape)


def tensor_bytes(spec: TensorSpec, count: int = 1) -> int:
    """The size of a tensor in a run of `count` tokens."""
    return math.prod(fixed_shape(spec, count)) * ITEM_BYTES[spec.dtype]


class FileSpec(Part):
    """A file of the bundle: path relative to its root, size in bytes, and SHA-256."""

    path: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class GraphSpec(Part):
    """The step graph of one flow block in one variant, or the velocity graph of a continuous flow, which counts as block 0.

    `weight_bytes` is the size of all weights that a single step reads, in the type this lowering computes them in.
    """

    block: int = Field(ge=0)
    file: FileSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int = Field(ge=0)
