"""Programs that starflow loads tell nobody that it runs.

The wheel of ONNX Runtime records sessions in `~/.cache/Microsoft` and sends them, unless it is told not to before it is loaded.
Whoever wants that sets `ORT_DISABLE_TELEMETRY=0`. A cluster of Ray that starflow starts reports its use, unless it is told not
to; whoever wants that sets `RAY_USAGE_STATS_ENABLED=1`.
"""

import os
from typing import Any

SWITCH = "ORT_DISABLE_TELEMETRY"

os.environ.setdefault(SWITCH, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def silence(onnxruntime: Any) -> None:
    """Stop the events of an ONNX Runtime that was loaded before starflow could tell it not to begin."""
    if os.environ[SWITCH] != "0":
        onnxruntime.disable_telemetry_events()
