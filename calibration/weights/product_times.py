"""How long ONNX Runtime takes for products in each 8-bit treatment against float32, measured on this machine.

Which product is fastest depends on the processor, the shape of the matrix and the number of rows, and the machine alone knows. All
take turns in one process. There are as many matrices of a shape as a flow block has, each with inputs of its own: a single one
would stay in a processor cache.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from starflow.calibration.weights.graph_edit import Replacement, edit_graph
from starflow.calibration.weights.number_format import QuantizedMatrix
from starflow.calibration.weights.step_graph_weights import StepGraphWeights
from starflow.calibration.weights.treatment import Treatment
from starflow.runtime.backends.onnxruntime.session import spin_microseconds
from starflow.runtime.diagnostics.take_turns import take_turns_for
from starflow.runtime.plain.errors import StarflowError

Shape = tuple[int, int]
Rows = int

SECONDS, ROUNDS = 0.5, (7, 51)  # for a shape and a number of rows, and rounds that this may take
LEAST_SECONDS = 1e-3  # of a turn: what is shorter runs several times
MOST_BYTES = 64 << 20  # of float32 matrices that are multiplied one after the other: more than caches hold


def measure_products(
    shape: Shape, count: int, rows: Sequence[Rows], treatments: Sequence[Treatment], threads: int
) -> dict[str, dict[Rows, float]]:
    """Seconds of one product in float32 (called "fp32") and in each treatment that takes the shape, by number of rows.

    Args:
        shape: Outputs and inputs of the matrix.
        count: How many matrices of the shape a flow block has.
        threads: Threads within an operator.
    """
    outputs, inputs = shape
    copies = max(1, min(count, MOST_BYTES // (4 * outputs * inputs)))
    with tempfile.TemporaryDirectory() as folder:
        source = _products(Path(folder) / "products.onnx", outputs, inputs, copies)
        models = {"fp32": onnx.load(source.path)}
        for treatment in treatments:
            block = treatment.block(inputs)
            if block is not None:
                models[treatment.name] = _quantised(source, treatment, block)
    sessions = {name: _open(model, threads, 4 * outputs * inputs * copies) for name, model in models.items()}
    found: dict[str, dict[Rows, float]] = {name: {} for name in sessions}
    for each in rows:
        x = np.random.default_rng(0).standard_normal((each, inputs)).astype(np.float32)
        feed = {f"x{copy}": x for copy in range(copies)}
        runs = {name: _Run(session, feed) for name, session in sessions.items()}
        times = take_turns_for(list(runs.values()), SECONDS, ROUNDS)
        for (name, run), taken in zip(runs.items(), times, strict=True):
            found[name][each] = taken.milliseconds / 1000 / run.count / copies
    return found


def relative_times(times: Mapping[str, Mapping[Rows, float]]) -> dict[str, float]:
    """Time of each treatment over that of float32: the geometric mean over the numbers of rows, all of which count alike."""
    exact = times["fp32"]
    return {
        name: math.exp(statistics.fmean(math.log(taken[rows] / exact[rows]) for rows in exact))
        for name, taken in times.items()
        if name != "fp32"
    }


class _Run:
    """Runs a session as often as a turn needs."""

    def __init__(self, session: onnxruntime.InferenceSession, feed: dict[str, NDArray]) -> None:
        self._session, self._feed = session, feed
        session.run(None, feed)
        start = time.perf_counter()
        session.run(None, feed)
        self.count = max(1, math.ceil(LEAST_SECONDS / (time.perf_counter() - start)))

    def __call__(self, lap: Callable[..., None]) -> None:
        for _ in range(self.count):
            self._session.run(None, self._feed)


def _products(path: Path, outputs: int, inputs: int, copies: int) -> StepGraphWeights:
    """A graph of products x Wᵀ + b, independent of each other, on disk; StarflowError if the disk is full."""
    draw, kind = np.random.default_rng(0), TensorProto.FLOAT
    matrix = draw.standard_normal((outputs, inputs)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", [f"x{i}", f"w{i}", f"b{i}"], [f"y{i}"], name=f"p{i}", transB=1)
            for i in range(copies)
        ],
        "products",
        [helper.make_tensor_value_info(f"x{i}", kind, ["M", inputs]) for i in range(copies)],
        [helper.make_tensor_value_info(f"y{i}", kind, ["M", outputs]) for i in range(copies)],
        [numpy_helper.from_array(matrix, f"w{i}") for i in range(copies)]
        + [numpy_helper.from_array(np.zeros(outputs, np.float32), f"b{i}") for i in range(copies)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    try:
        onnx.save(model, path)
    except OSError as error:
        raise StarflowError(
            f"{path.parent}: a graph to time cannot be written ({error.strerror or error});"
            " free some space, or name another folder in TMPDIR"
        ) from None
    return StepGraphWeights(path)


def _quantised(source: StepGraphWeights, treatment: Treatment, block: int) -> onnx.ModelProto:
    codes = np.random.default_rng(0).integers(-127, 128, source.array("w0").shape).astype(np.int8)
    scales = np.full((len(codes), codes.shape[1] // block), 1e-3, np.float32)
    replacement = Replacement(QuantizedMatrix(treatment.format, codes, scales), treatment.wide, treatment.by_row)
    return edit_graph(source, "cpu", dict.fromkeys(source.linears, replacement), {}).embedded()


def _open(model: onnx.ModelProto, threads: int, read: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_microseconds(read)))
    options.log_severity_level = 4  # what it reports as an error it also raises
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
