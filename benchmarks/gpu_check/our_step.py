"""Our step on a GPU, timed as PyTorch's is: all tokens of the larger model's block, without prefill."""

import time
from pathlib import Path

import numpy as np
from benchmarks.pytorch_comparison import GUIDANCE, TEXT_TOKENS, TEXT_WIDTH

from starflow.runtime import Sampler
from starflow.runtime.backends.base import Provider
from starflow.runtime.backends.choice import BackendName
from starflow.runtime.backends.cuda.block_runner import CapturedBlockRunner
from starflow.runtime.bundle.bytes_read import pass_bytes

FEW = 16  # tokens whose launches the GPU takes without letting the host wait


class OurStep:
    """A sampler of the larger model, whose only block decodes again and again."""

    def __init__(self, bundle: Path, backend: BackendName, variant: str | None, batch: int) -> None:
        provider: Provider = "cuda" if backend == "onnxruntime" else "cpu"
        self.sampler = Sampler.open(bundle, backend=backend, provider=provider, variant=variant, batch=batch)
        text = np.random.default_rng(1).standard_normal((2, TEXT_TOKENS, TEXT_WIDTH)).astype(np.float32)
        # What is decoded does not matter, and the caches and inputs stay those of this run.
        self.sampler.generate(self.sampler.noise(batch), text[0], text[1], guidance=GUIDANCE)
        runner = self.sampler.backend.block_runner(0)
        assert isinstance(runner, CapturedBlockRunner)
        self.runner, self.tokens = runner, runner.block.capacity - TEXT_TOKENS
        self.launching: list[float] = []  # seconds of the host for a token, a value for each decoded sequence

    def decode(self) -> None:
        """Decode all tokens and wait for them."""
        self.runner.seek(TEXT_TOKENS)
        start = time.perf_counter()
        self.runner.advance(FEW)
        self.launching.append((time.perf_counter() - start) / FEW)
        self.runner.advance(self.tokens - FEW)
        self.runner.synchronize()

    @property
    def bytes(self) -> int:
        """Bytes of weights and valid caches that a token reads."""
        return pass_bytes(self.sampler.manifest, self.sampler.variant)[0]
