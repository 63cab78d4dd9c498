"""Run bundles: the sampler, the bundle format, the backends and the command line. Needs no torch."""

from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.pipeline import StarflowPipeline
from starflow.runtime.plain import telemetry as telemetry  # before anything loads ONNX Runtime
from starflow.runtime.plain.errors import StarflowError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import DecodePlan, Jacobi
from starflow.runtime.sampler import Sampler
from starflow.runtime.sampler_pool import SamplerPool

__all__ = ["Bundle", "DecodePlan", "Guidance", "Jacobi", "Sampler", "SamplerPool", "StarflowError", "StarflowPipeline"]
