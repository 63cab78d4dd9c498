"""The continuous part of docs/bundle.md is enough to write a runtime from: this one was, and it makes the same samples."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

# The second runtime: `json`, NumPy and ONNX Runtime

TABLEAUS: dict[str, Any] = {
    "euler": ([0], [[]], [1]),
    "midpoint": ([0, 1 / 2], [[], [1 / 2]], [0, 1]),
    "heun": ([0, 1], [[], [1]], [1 / 2, 1 / 2]),
    "rk4": ([0, 1 / 2, 1 / 2, 1], [[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}


def integrate(root: Path, variant: str, z, labels, weight, solver, times):
    manifest = json.loads((root / "manifest.json").read_text())
    (found,) = (entry for entry in manifest["variants"] if entry["name"] == variant)
    graph = found["graphs"][0]
    session = ort.InferenceSession(root / graph["file"]["path"], providers=["CPUExecutionProvider"])
    batch, limit = manifest["batch"], manifest["max_passes"]
    nodes, matrix, weights = TABLEAUS[solver]
    table = []
    for start, end in pairwise(times):
        h = end - start
        for i in range(len(nodes)):
            last = i == len(nodes) - 1
            table.append((start + nodes[i] * h, 0 if last else h * matrix[i + 1][i], h * weights[i], last))
    values = {"x": z, "point": z, "total": z, "passes": np.zeros((limit, 4), np.float32)}
    null = [manifest["conditioning"]["num_classes"]] * batch
    values |= {"label": np.array([*labels, *null], np.int64), "guidance": np.full(batch, weight, np.float32)}
    names = [tensor["name"] for tensor in graph["outputs"]]
    for first in range(0, len(table), limit):
        part = np.array(table[first : first + limit], np.float32)
        values["passes"][: len(part)] = part
        values["pass"] = np.zeros(1, np.int64)
        for _ in part:
            made = dict(zip(names, session.run(None, values), strict=True))
            values |= {name.removesuffix("_next"): made[name] for name in names if name.endswith("_next")}
    return values["x"]


# The test


@pytest.mark.parametrize("variant", ["cpu-fp32", "portable-fp32"])
@pytest.mark.parametrize("solver", TABLEAUS)
def test_the_manual_is_enough(continuous_bundle: Path, variant: str, solver: str) -> None:
    from starflow.runtime import Sampler
    from starflow.runtime.plans.integration_plan import FixedSteps

    times = (0.0, 0.2, 0.55, 1.0) if solver != "euler" else tuple(index / 300 for index in range(301))
    plan = FixedSteps.model_validate({"solver": solver, "times": times})
    with Sampler.open(continuous_bundle, variant=variant, plan=plan, threads=1) as sampler:
        z = sampler.noise(2, seed=1)
        expected = sampler.generate(z, [2, 0], guidance=1.5)
    found = integrate(continuous_bundle, variant, z, [2, 0], 1.5, solver, times)
    np.testing.assert_allclose(found, expected, atol=1e-5)
