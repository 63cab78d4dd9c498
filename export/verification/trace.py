"""The cases and traces of `starflow.runtime.traces`, under the name they had before."""

from starflow.runtime.traces.autoregressive import sample_trace
from starflow.runtime.traces.case import Case, draw_case

__all__ = ["Case", "draw_case", "sample_trace"]
