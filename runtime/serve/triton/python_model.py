"""The model of Triton's Python backend: what the `model.py` of a repository hands to Triton.

https://github.com/triton-inference-server/python_backend
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # only Triton has it
from numpy.typing import NDArray

from starflow.runtime.plain.errors import BackendError, NotFiniteError, StarflowError, UsageError
from starflow.runtime.serve.error_sentence import sentence
from starflow.runtime.serve.named_tensors import inputs
from starflow.runtime.serve.triton.config import LEFT
from starflow.runtime.serve.triton.merged_requests import CancelledError, MergedRequest, Tensors, answer
from starflow.runtime.serve.triton.settings import Settings


class PythonModel:
    """A bundle as a model of Triton, each instance in a process of its own.

    A decoupled model streams previews: an answer after each flow block, whose output `blocks_left` counts down, and with 0 the
    images.
    """

    def initialize(self, arguments: dict[str, str]) -> None:
        """Open the bundle beside `model.py`, as the parameters of `config.pbtxt` say.

        Raises:
            TritonModelException: it cannot be opened here.
        """
        try:
            self._open(arguments)
        except StarflowError as error:
            raise pb.TritonModelException(str(error)) from None  # Triton logs where an error arose; this is no bug

    def _open(self, arguments: dict[str, str]) -> None:
        _check_arrays()
        config = json.loads(arguments["model_config"])
        folder = Path(arguments["model_repository"], arguments["model_version"])
        settings = Settings.of_parameters({key: each["string_value"] for key, each in config["parameters"].items()})
        instances = sum(int(group["count"]) for group in config["instance_group"])
        self._name, self._most_images = arguments["model_name"], int(config["max_batch_size"])
        self._decoupled = pb.using_decoupled_model_transaction_policy(config)
        cores = len(os.sched_getaffinity(0))
        self._sampler = settings.open(folder, threads=0 if instances == 1 else max(1, cores // instances))
        self._sampler.load()
        self._inputs = [spec.name for spec in inputs(self._sampler.manifest)]

    def finalize(self) -> None:
        """Free what `initialize` opened."""
        self._sampler.close()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answer the requests that Triton merged, or send the answers of a decoupled model."""
        senders: list[Any] = [request.get_response_sender() if self._decoupled else None for request in requests]
        asked = [self._asked(request, sender) for request, sender in zip(requests, senders, strict=True)]
        answers = answer(self._sampler, asked, name=self._name, most_images=self._most_images)
        responses = [_response(found, 0 if self._decoupled else None) for found in answers]
        if not self._decoupled:
            return responses
        for sender, response in zip(senders, responses, strict=True):
            sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None

    def _asked(self, request: Any, sender: Any) -> MergedRequest:
        found = ((name, pb.get_input_tensor_by_name(request, name)) for name in self._inputs)
        tensors = {name: tensor.as_numpy() for name, tensor in found if tensor is not None}
        wanted, is_cancelled = request.requested_output_names(), (sender or request).is_cancelled
        return MergedRequest(tensors, wanted, partial(_send_preview, sender) if sender else None, is_cancelled)


def _send_preview(sender: Any, images: NDArray[np.uint8], blocks_left: int) -> None:
    sender.send(_response({"image": images}, blocks_left))


def _response(found: Tensors | Exception, blocks_left: int | None) -> Any:
    if isinstance(found, Exception):
        return pb.InferenceResponse(error=pb.TritonError(sentence(found), _code(found)))
    made = dict(found)
    if blocks_left is not None:
        count = len(next(iter(made.values()), ()))
        made[LEFT.name] = np.full((count, 1), blocks_left, np.int32)
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(values)) for name, values in made.items()])


def _code(error: Exception) -> Any:
    if isinstance(error, CancelledError):
        return pb.TritonError.CANCELLED
    return pb.TritonError.INVALID_ARG if isinstance(error, UsageError | NotFiniteError) else pb.TritonError.INTERNAL


def _check_arrays() -> None:
    """See that arrays reach Triton whole: where it was built for NumPy 1, those of NumPy 2 arrive empty, without an error.

    Raises:
        BackendError: they do not.
    """
    sent = np.arange(1, 4, dtype=np.int32)
    seen = pb.Tensor.from_dlpack("probe", pb.Tensor("probe", sent).to_dlpack()).as_numpy()
    if not np.array_equal(seen, sent):
        raise BackendError(
            f"this Triton cannot read the arrays of numpy {np.__version__}; install numpy<2 in the environment of the model"
        )
