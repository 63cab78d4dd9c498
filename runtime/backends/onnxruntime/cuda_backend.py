"""ONNX Runtime on an NVIDIA GPU as a backend: steps are CUDA graphs, weights lie on the device once."""

import os
from contextlib import ExitStack, closing
from typing import cast

from onnxruntime import InferenceSession

from starflow.runtime.backends.base import GraphBackend
from starflow.runtime.backends.cuda.bandwidth import CudaBandwidthProbe
from starflow.runtime.backends.cuda.block_runner import CapturedBlockRunner
from starflow.runtime.backends.cuda.continuous_runner import CapturedContinuousRunner
from starflow.runtime.backends.cuda.device import Gpu, Stream
from starflow.runtime.backends.onnxruntime.cuda_engine import CudaEngine
from starflow.runtime.backends.onnxruntime.device_weights import DeviceWeights
from starflow.runtime.backends.onnxruntime.release import check_release
from starflow.runtime.backends.onnxruntime.session import OnDevice, open_session
from starflow.runtime.bundle.autoregressive_manifest import Block
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import GraphSpec
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.plain.shared import Shared

# ONNX Runtime's second kernel for cached attention is slower at the lengths of images: docs/cuda.md. Its only switch is a variable
# of the environment, which kernels read as a session makes them.
SLOWER_ATTENTION = "ORT_ENABLE_XQA"


class CudaBackend(GraphBackend):
    """Sessions of ONNX Runtime's CUDA provider for the graphs of one variant, portable or of the cuda lowering.

    Args:
        weights: The variant's weights, of which the backend becomes an owner; None loads them.
        device: Number of the GPU, counted by CUDA from 0.

    Raises:
        BackendError: there is no usable GPU.
    """

    name = "onnxruntime cuda"

    def __init__(
        self, bundle: Bundle, variant: Variant, weights: Shared[DeviceWeights] | None = None, device: int = 0
    ) -> None:
        super().__init__(bundle, variant)
        check_release(variant)
        gpu = Gpu(device)
        self.device_name = gpu.name
        self._weights = weights or Shared(DeviceWeights(bundle, variant.weights, gpu))
        with ExitStack() as stack:
            stack.enter_context(closing(self._weights))
            self._stream = stack.enter_context(closing(Stream(gpu)))
            self._resources = stack.pop_all()

    def bandwidth_probe(self) -> CudaBandwidthProbe:
        return CudaBandwidthProbe(self._stream.gpu)

    def open_block(self, graph: GraphSpec, block: Block, max_chunk: int) -> CapturedBlockRunner:
        os.environ.setdefault(SLOWER_ATTENTION, "0")
        with ExitStack() as stack:
            engine = self._opened(graph, stack)
            prefill = self.max_prefill(block)
            runner = CapturedBlockRunner(engine, block, max_chunk, self._stream, engine.capture, prefill)
            stack.enter_context(closing(runner))
            self._resources.enter_context(stack.pop_all())
        return runner

    def open_continuous(self, graph: GraphSpec) -> CapturedContinuousRunner:
        with ExitStack() as stack:
            engine = self._opened(graph, stack)
            runner = CapturedContinuousRunner(graph, engine.what, self._stream, engine.capture)
            stack.enter_context(closing(runner))
            self._resources.enter_context(stack.pop_all())
        return runner

    def block_runner(self, block: int) -> CapturedBlockRunner:
        return cast(CapturedBlockRunner, super().block_runner(block))

    def twin(self) -> "CudaBackend":
        return self._joined(self._bundle, self._variant)

    def at_batch(self, bundle: Bundle) -> "CudaBackend":
        return self._joined(bundle, bundle.variant(self._variant.name, self._variant.lowering))

    def _joined(self, bundle: Bundle, variant: Variant) -> "CudaBackend":
        """A backend that shares the weights of this one; sessions belong to a stream."""
        return CudaBackend(bundle, variant, self._weights.joined(), self._stream.gpu.index)

    def _opened(self, graph: GraphSpec, stack: ExitStack) -> CudaEngine:
        """The sessions of a graph, which `stack` closes."""

        def session(sizes: dict[str, int]) -> InferenceSession:
            on_device = OnDevice(self._stream.handle, sizes, self._weights.resource.tensors())
            return open_session(self._bundle, graph, "cuda", 0, on_device=on_device)

        self._stream.gpu.select()
        return stack.enter_context(closing(CudaEngine(graph, session, self._stream)))

    def close(self) -> None:
        super().close()
        self._stream.gpu.release("cudaSetDevice", self._stream.gpu.index)
        self._resources.close()
