"""`config.pbtxt`, which tells Triton what a model takes and makes, and how to run it.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from starflow.runtime.bundle.manifest_file import Manifest
from starflow.runtime.serve.named_tensors import TensorSpec, inputs, outputs
from starflow.runtime.serve.triton.settings import Settings

Kind = Literal["cpu", "gpu"]
LEFT = TensorSpec("blocks_left", "INT32", (-1,))  # of a model that streams previews: flow blocks that are still to run

HEADER = """\
# Written by `starflow triton`. `starflow serve` calls inputs and outputs the same. All inputs may be left out but one, whose
# first dimension says for how many images the request is.
"""


@dataclass(frozen=True)
class Hosting:
    """How Triton runs a model.

    Attributes:
        kind: What its instances run on; on a GPU it is the first one that Triton sees.
        count: Number of instances, each a process of its own.
        patience: Seconds that a request waits for others to fill its batch.
    """

    kind: Kind = "cpu"
    count: int = 1
    patience: float = 0.005


def config_text(name: str, manifest: Manifest, hosting: Hosting, settings: Settings, *, previews: bool) -> str:
    """The configuration of a model.

    Args:
        manifest: Of the shape and the batch size that run.
        previews: Whether the model streams previews, see `PythonModel`.
    """
    made = [outputs(manifest)[0], LEFT] if previews else outputs(manifest)
    kind = "KIND_CPU" if hosting.kind == "cpu" else "KIND_GPU gpus: [ 0 ]"
    parts = [
        f"name: {json.dumps(name)}",
        'backend: "python"',
        f"max_batch_size: {manifest.batch}",
        *(["model_transaction_policy { decoupled: true }"] if previews else []),
        f"input [\n{_tensors(inputs(manifest), ' optional: true')}\n]",
        f"output [\n{_tensors(made)}\n]",
        f"dynamic_batching {{ max_queue_delay_microseconds: {round(hosting.patience * 1e6)} }}",
        f"instance_group [ {{ count: {hosting.count} kind: {kind} }} ]",
        *(
            f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}"
            for key, value in settings.parameters().items()
        ),
    ]
    return HEADER + "\n".join(parts) + "\n"


def _tensors(specs: Sequence[TensorSpec], more: str = "") -> str:
    return ",\n".join(
        f"  {{ name: {json.dumps(spec.name)} data_type: {_data_type(spec)} dims: [ {_dims(spec)} ]{more} }}"
        for spec in specs
    )


def _data_type(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"


def _dims(spec: TensorSpec) -> str:
    """What follows the number of images; Triton wants at least one dimension."""
    return ", ".join(map(str, spec.shape[1:] or (1,)))
