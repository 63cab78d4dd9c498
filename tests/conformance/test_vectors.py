"""Every recorded call of the published implementations, through PyTorch and through exported graphs."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from starflow.training.autoregressive.model import AutoregressiveFlow
from tests.conformance.bundle_calls import export_call, export_denoiser, run_denoising, run_sampling
from tests.conformance.cases import Case
from tests.conformance.torch_calls import call_jacobi, load_model, run_call

ONNX_FACTOR = 10  # exported graphs may differ by ten times what PyTorch may


@cache
def model_before(case: Case, call_id: int) -> AutoregressiveFlow:
    """The model as the call finds it: earlier calls may have changed its state."""
    model = load_model(case)
    for call in case.config["calls"][:call_id]:
        if call["op"] == "update_prior":
            run_call(case, model, call)
    return model


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def test_recorded_call(case: Case, call_id: int, route: str, bundles: Path) -> None:
    call = case.config["calls"][call_id]
    reason = case.unsupported() or case.unsupported_call(call)
    if reason:
        pytest.skip(reason)
    if route == "cuda" and call_jacobi(call["args"]):
        pytest.skip("the cuda lowering decodes token by token")
    model = model_before(case, call_id)
    if route == "torch":
        outputs, factor = run_call(case, model, call), 1
    elif call["op"] != "reverse":
        outputs, factor = (
            run_denoising(case, call, export_denoiser(case, call, model.state_dict(), bundles)),
            ONNX_FACTOR,
        )
    else:
        bundle = export_call(case, call, model.state_dict(), bundles)
        outputs, factor = run_sampling(case, call, bundle, route), ONNX_FACTOR
    for key, expected in call["outputs"].items():
        recorded = case.tensors[expected["tensor"]].numpy()
        found = np.asarray(outputs[key].detach() if hasattr(outputs[key], "detach") else outputs[key])
        assert found.shape == recorded.shape, key
        worst = float(np.abs(found.astype(np.float64) - recorded).max())
        assert worst <= factor * expected["atol"], f"{key}: off by {worst:.3g}, allowed {factor * expected['atol']:.3g}"
    if route == "torch" and "jacobi_trace" in call:
        recorded_trace = [(t["block"], t["start"], t["size"], t["iterations"]) for t in call["jacobi_trace"]]
        assert [(t.block, t.start, t.size, len(t.changes)) for t in outputs["jacobi_trace"]] == recorded_trace
