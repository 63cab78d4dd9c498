"""Tensors of the Open Inference Protocol v2 as JSON and as bytes behind it.

https://github.com/kserve/open-inference-protocol, and its extension for binary tensors.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from starflow.runtime.serve.http.body import RefusedError

DATATYPES = {
    "BOOL": np.dtype(bool),
    **{f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
MOST_VALUES = 1 << 24


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class InputTensor(_Form):
    """A tensor that a client sends."""

    name: str = Field(max_length=100)
    shape: list[int] = Field(max_length=8)
    datatype: str = Field(max_length=10)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputChoice(_Form):
    """A tensor that a client wants."""

    name: str = Field(max_length=100)
    parameters: dict[str, Any] = {}


class InferRequest(_Form):
    """The JSON of a request."""

    id: str | None = Field(None, max_length=200)
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(max_length=16)
    outputs: list[OutputChoice] = Field([], max_length=8)


def read_tensors(inputs: Sequence[InputTensor], binary: bytes) -> dict[str, NDArray]:
    """The tensors of a request by name; text is an array of `str`.

    Args:
        binary: What follows the JSON.

    Raises:
        RefusedError: a tensor's data do not fit its shape or type, or the bytes do not fit the tensors.
    """
    found: dict[str, NDArray] = {}
    offset = 0
    for tensor in inputs:
        if tensor.name in found:
            raise RefusedError(400, f"input {tensor.name} is given twice", parameter=tensor.name)
        if tensor.datatype not in (*DATATYPES, "BYTES"):
            known = ", ".join((*DATATYPES, "BYTES"))
            raise RefusedError(400, f"input {tensor.name}: datatype {tensor.datatype!r} is none of {known}")
        if any(side < 0 for side in tensor.shape) or math.prod(tensor.shape) > MOST_VALUES:
            raise RefusedError(400, f"input {tensor.name}: shape {tensor.shape} is not one this server takes")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = _from_json(tensor)
        elif isinstance(size, int) and 0 <= size <= len(binary) - offset and tensor.data is None:
            values = _from_bytes(tensor, binary[offset : offset + size])
            offset += size
        else:
            left = len(binary) - offset
            raise RefusedError(400, f"input {tensor.name}: binary_data_size {size!r}, but {left} bytes follow the JSON")
        if values.size != math.prod(tensor.shape):
            raise RefusedError(400, f"input {tensor.name}: {values.size} values do not fill the shape {tensor.shape}")
        found[tensor.name] = values.reshape(tensor.shape)
    if offset != len(binary):
        raise RefusedError(400, f"{len(binary) - offset} bytes follow the last tensor")
    return found


def _from_json(tensor: InputTensor) -> NDArray:
    if tensor.data is None:
        raise RefusedError(400, f"input {tensor.name} has neither data nor parameters.binary_data_size")
    flat = _flat(tensor.data)
    if tensor.datatype == "BYTES":
        if not all(isinstance(value, str) for value in flat):
            raise RefusedError(400, f"input {tensor.name}: BYTES in JSON are strings")
        return np.array(flat, object)
    kind, dtype = tensor.datatype.lstrip("U")[:2], DATATYPES[tensor.datatype]
    fits = {"FP": (int, float), "IN": (int,), "BO": (bool,)}[kind]
    if not all(isinstance(value, fits) and (kind == "BO" or not isinstance(value, bool)) for value in flat):
        raise RefusedError(400, f"input {tensor.name}: its data are not all {tensor.datatype}")
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype)
    except (OverflowError, FloatingPointError):
        raise RefusedError(400, f"input {tensor.name}: a number is too large for {tensor.datatype}") from None


def _flat(data: list[Any]) -> list[Any]:
    """The values of nested lists in order; parsing bounds how deep they are."""
    out: list[Any] = []
    for value in data:
        out.extend(_flat(value) if isinstance(value, list) else [value])
    return out


def _from_bytes(tensor: InputTensor, content: bytes) -> NDArray:
    if tensor.datatype != "BYTES":
        dtype = DATATYPES[tensor.datatype]
        if len(content) % dtype.itemsize:
            raise RefusedError(400, f"input {tensor.name}: {len(content)} bytes are no whole number of values")
        return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype)
    texts: list[str] = []
    offset = 0
    while offset < len(content):
        end = offset + 4 + int.from_bytes(content[offset : offset + 4], "little")
        if end > len(content) or len(content) - offset < 4:
            raise RefusedError(400, f"input {tensor.name}: a string is cut off")
        try:
            texts.append(content[offset + 4 : end].decode())
        except UnicodeDecodeError:
            raise RefusedError(400, f"input {tensor.name}: a string is not UTF-8") from None
        offset = end
    return np.array(texts, object)


def write_tensor(name: str, values: NDArray, *, binary: bool) -> tuple[Mapping[str, Any], bytes]:
    """The JSON of an output tensor, and the bytes that follow if it is binary."""
    described = {"name": name, "shape": list(values.shape), "datatype": NAMES[values.dtype]}
    if not binary:
        return {**described, "data": values.ravel().tolist()}, b""
    content = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return {**described, "parameters": {"binary_data_size": len(content)}}, content
