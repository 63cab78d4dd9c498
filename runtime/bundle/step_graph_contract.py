"""The contract of a step graph, as the table of inputs and outputs in docs/bundle.md states it."""

from collections.abc import Sequence
from typing import Literal

from starflow.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from starflow.runtime.bundle.tensor_contract import Expected, misfit

CACHE_TYPES = {"float32", "float16", "bfloat16", "int8"}


def step_graph_misfit(
    graph: GraphSpec,
    *,
    batch: int,
    rows: int,
    capacity: int,
    token_dim: int,
    condition_width: int,
    labelled: bool,
    guidance: Literal["ratio", "linear"] | None,
    attention_temperature: bool,
) -> str | None:
    """What is wrong with a step graph of a flow block; None if nothing is.

    Args:
        graph: The graph.
        batch, rows, capacity, token_dim: Sizes that its inputs and outputs share.
        condition_width: Width of condition tokens; 0 if the block takes none.
        labelled: Whether it takes a class for each row.
        guidance: The rule it is guided by; None if it is not.
        attention_temperature: Whether it takes an attention temperature.
    """
    samples = Expected("float32", (batch, 1, capacity, token_dim))
    run = Expected("float32", (batch, "S", token_dim))
    each = Expected("float32", (batch,))
    inputs = {
        "position": Expected("int64", (1,)),
        "previous": run,
        "noise": Expected("float32", (batch, capacity, token_dim)),
        "samples": samples,
    }
    if condition_width:
        inputs["condition"] = Expected("float32", (rows, "S", condition_width))
    if labelled:
        inputs["label"] = Expected("int64", (rows,))
    if guidance == "ratio":
        inputs["guidance"] = each
    if guidance == "linear":
        inputs["guidance_scale"] = Expected(each.dtype, each.shape, optional=True)
        inputs["guidance_shift"] = inputs["guidance_anneal"] = each
    if attention_temperature:
        inputs["inverse_temperature"] = Expected("float32", (rows,))
    outputs = {"token": run, "samples": samples, "position": Expected("int64", (1,), optional=True)}
    return (
        misfit(_beside_caches(graph.inputs), inputs, "takes")
        or misfit(_beside_caches(graph.outputs), outputs, "makes")
        or _update_misfit(graph)
        or _cache_misfit(graph.inputs, rows, capacity)
    )


def _beside_caches(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in specs if spec.role != "cache"]


def _update_misfit(graph: GraphSpec) -> str | None:
    """Each cache, and the samples, are updated by an output of their type and shape."""
    outputs = {spec.name: spec for spec in graph.outputs if spec.role in ("cache", "samples")}
    kept = [spec for spec in graph.inputs if spec.role in ("cache", "samples")]
    if sorted(spec.updated_by or "" for spec in kept) != sorted(outputs):
        return "has cache inputs and outputs that do not pair up"
    for spec in graph.inputs:
        if (spec.updated_by is not None) != (spec in kept):
            return f"has {spec.name}, which is no cache, updated in place"
        if spec.updated_by:
            made = outputs[spec.updated_by]
            if (made.dtype, made.shape, made.role) != (spec.dtype, spec.shape, spec.role):
                return f"updates {spec.name} by {made.name}, which has another type or shape"
    return None


def _cache_misfit(inputs: Sequence[TensorSpec], rows: int, capacity: int) -> str | None:
    """All caches have one shape: [rows, heads, slots, width], or [1, rows x heads, slots, width].

    Slots are the capacity, or that rounded up to a multiple of eight.
    """
    caches = [spec for spec in inputs if spec.role == "cache"]
    if not caches:
        return "has no caches"
    first = caches[0]
    for spec in caches:
        if spec.dtype not in CACHE_TYPES:
            return f"has a cache of {spec.dtype}"
        if spec.shape != first.shape:
            return f"has caches of the shapes {list(first.shape)} and {list(spec.shape)}"
    sizes = [size for size in first.shape if isinstance(size, int)]
    if (
        len(sizes) != 4
        or sizes[0] not in (1, rows)
        or (sizes[0] * sizes[1]) % rows
        or sizes[2] not in (capacity, -(-capacity // 8) * 8)
    ):
        return f"has caches of shape {list(first.shape)}, which do not hold {rows} rows of {capacity} positions"
    return None
