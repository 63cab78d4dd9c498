"""What ONNX Runtime raises is not printed as well: its lines are coloured, and hold what a file says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOAD = """
import sys
from starflow.runtime.backends.onnxruntime.session import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
try:
    onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"]).run(None, {})
except Exception:
    print("raised")
"""


def test_an_allocator_prints_nothing(tmp_path: Path) -> None:
    """Its size overflows, of which not the session's logger is told but the process's."""
    shape = numpy_helper.from_array(np.zeros(1, np.int64), "shape")
    shape.dims[:] = [2**62]
    node = helper.make_node("ConstantOfShape", ["shape"], ["made"])
    output = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "graph", [], [output], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "graph.onnx")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "graph.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("raised\n", "")
