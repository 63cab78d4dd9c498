"""A continuous flow on the simulated device: one CUDA graph, replayed pass by pass, nothing from the host in between."""

from typing import Any

import numpy as np
import pytest

from starflow.runtime.backends.tensorrt.backend import open_tensorrt
from starflow.runtime.bundle.build_record import read_builds
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plans.integration_plan import AdaptiveSteps, integration_plan
from starflow.runtime.sampler import Plan
from tests.simulated_device.fixtures import Simulate
from tests.simulated_device.sampling import FP16, generate, interpreter, onnxruntime, relative_error

PLANS: list[Plan] = [integration_plan("euler", 5), integration_plan("rk4", 3), AdaptiveSteps(tolerance=1e-2)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_samples_are_those_of_the_parsed_network(continuous_engines: Bundle, simulate: Simulate, plan: Plan) -> None:
    expected = generate(continuous_engines, interpreter(continuous_engines), plan=plan)
    simulate()
    found = generate(continuous_engines, open_tensorrt(continuous_engines), plan=plan)
    # The device executes the very network the interpreter does: the loop may not change a single bit.
    np.testing.assert_array_equal(found, expected)
    assert relative_error(found, generate(continuous_engines, onnxruntime(continuous_engines), plan=plan)) <= FP16


def test_a_step_is_a_replay_and_nothing_waits_between_steps(continuous_engines: Bundle, simulate: Simulate) -> None:
    device = simulate()
    with open_tensorrt(continuous_engines) as backend:
        runner = backend.continuous_runner()
        runner.start(np.zeros((2, 1, 8, 8), np.float32))
        runner.load(np.tile([0.5, 0.1, 0.1, 1.0], (40, 1)))
        before = device.counts.copy()
        runner.advance(40)
        assert device.counts - before == {"cudaSetDevice": 1, "cudaGraphLaunch": 40}
        assert runner.fetch("pass") == [40]
        assert device.counts["cudaStreamBeginCapture"] == 1
        assert runner.kernels_per_pass == 1  # the simulated engine is one; the copies are none


def test_the_engine_has_one_profile_of_fixed_shapes(continuous_engines: Bundle) -> None:
    (record,) = read_builds(continuous_engines)
    assert [profile.maximum for profile in record.profiles] == [1]
    (engine,) = record.engines
    assert engine.block == 0 and engine.file.bytes > 100_000


def test_verify_knows_the_route(continuous_engines: Bundle, simulate: Simulate, capsys: Any) -> None:
    from starflow.runtime.command_line import main

    simulate()
    root = str(continuous_engines.root)
    assert main(["verify", root, "--backend", "onnxruntime", "tensorrt", "--images", "2"]) == 0
    assert "tensorrt portable-fp16" in capsys.readouterr().out
