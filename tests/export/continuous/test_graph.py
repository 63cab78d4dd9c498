"""Velocity graphs on ONNX Runtime against PyTorch and SciPy, and what a bundle of them holds."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from scipy.integrate import solve_ivp

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime import Sampler
from starflow.runtime.backends.continuous_runner import ContinuousInputs
from starflow.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plans.integration_plan import integration_plan
from starflow.runtime.sampler import Plan
from starflow.training.checkpoint import load_continuous
from starflow.training.config import CheckpointConfig
from starflow.training.continuous.model import ContinuousFlow
from tests.models import points_config, velocity_config, write_velocity

TEXT = {"num_classes": 0, "txt_size": 3, "txt_dim": 6, "head_dim": 32, "channels": 64}
CONFIGS = {
    "classes": velocity_config(),
    "text": velocity_config(**TEXT),
    "unconditional": velocity_config(num_classes=0, patch_size=1, img_size=4),
    "points": points_config(),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ContinuousFlow, Bundle]]:
    return {name: written(config, tmp_path_factory.mktemp(name)) for name, config in CONFIGS.items()}


def written(config: CheckpointConfig, folder: Path, **options: Any) -> tuple[ContinuousFlow, Bundle]:
    network = write_velocity(folder / "checkpoint", config)
    export_checkpoint(
        folder / "checkpoint", folder / "bundle", ExportOptions(precisions=("fp32", "fp16"), batch=2, **options)
    )
    return network, Bundle.open(folder / "bundle")


def conditions(config: CheckpointConfig, tokens: int = 3) -> tuple[ContinuousInputs, Any, Any]:
    """What the graph takes, and the same for PyTorch; one weight an image."""
    weights = np.array([1.5, 0.3], np.float32)
    if config.conditioning.kind == "class":
        rows = np.array([0, 2, 3, 3])
        return ContinuousInputs(None, rows, weights), torch.tensor(rows[:2]), torch.tensor(rows[2:])
    if config.conditioning.kind == "features":
        drawn = np.random.default_rng(1).standard_normal((4, tokens, 6), np.float32)
        return ContinuousInputs(drawn, None, weights), torch.tensor(drawn[:2]), torch.tensor(drawn[2:])
    return ContinuousInputs(None, None, weights), None, None


def in_torch(network: ContinuousFlow, x: NDArray, time: float, y: Any, null: Any, weights: NDArray) -> NDArray:
    t = torch.full((len(x),), time)
    with torch.no_grad():
        v = network(torch.from_numpy(x), t, y)
        if y is not None:
            w = torch.from_numpy(weights).view(-1, *[1] * (x.ndim - 1))
            v = v + w * (v - network(torch.from_numpy(x), t, null))
    found: NDArray = v.numpy()
    return found


@pytest.mark.parametrize(
    ("variant", "allowed"),
    [("cpu-fp32", 1e-5), ("portable-fp32", 1e-5), ("cpu-fp16", 1e-2), ("portable-fp16", 2e-2)],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_velocity_is_pytorchs(models: dict, name: str, variant: str, allowed: float) -> None:
    network, bundle = models[name]
    given, y, null = conditions(CONFIGS[name])
    rng = np.random.default_rng(0)
    with OnnxRuntimeBackend(bundle, bundle.variant(variant, "cpu"), threads=1) as backend:
        runner = backend.continuous_runner()
        runner.condition(given)
        for time in (0.0, 0.37, 1.0):
            x = rng.standard_normal((2, *bundle.manifest.model.data_shape), np.float32)
            found = runner.velocity(x, time)
            expected = in_torch(network, x, time, y, null, given.guidance)
            np.testing.assert_allclose(found, expected, atol=allowed)
            assert np.abs(expected).max() > 0.1, "the network says something"
            assert name == "points" or np.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
def test_the_update_in_the_graph_is_the_solvers(models: dict, solver: str) -> None:
    """Some steps of a grid of unequal ones, written out by hand over PyTorch's velocity."""
    network, bundle = models["classes"]
    _, y, null = conditions(CONFIGS["classes"])
    times = (0.0, 0.1, 0.45, 1.0)
    plan = integration_plan(solver, 3).model_copy(update={"times": times})
    sampler = Sampler(
        bundle,
        bundle.variant("portable-fp32", "cpu"),
        OnnxRuntimeBackend(bundle, bundle.variant("portable-fp32", "cpu"), threads=1),
        plan,
    )
    noise = sampler.noise(2, seed=3)
    x: NDArray = noise
    found = sampler.generate(noise, [0, 2], guidance=0.7)

    def v(x: NDArray, t: float) -> NDArray:
        return in_torch(network, x, t, y, null, np.full(2, 0.7, np.float32))

    for t, end in pairwise(times):
        h = end - t
        k1 = v(x, t)
        if solver == "euler":
            x = x + h * k1
        elif solver == "midpoint":
            x = x + h * v(x + h / 2 * k1, t + h / 2)
        elif solver == "heun":
            x = x + h / 2 * (k1 + v(x + h * k1, end))
        else:
            k2 = v(x + h / 2 * k1, t + h / 2)
            k3 = v(x + h / 2 * k2, t + h / 2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(x + h * k3, end))
    np.testing.assert_allclose(found, x, atol=1e-5)


@pytest.mark.parametrize("name", ["classes", "points"])
def test_every_solver_ends_where_scipys_does(models: dict, name: str) -> None:
    """The exported graph as the right side of SciPy's solver, and integrated by itself: the same end point to 1e-5."""
    _, bundle = models[name]
    condition: dict[str, Any] = {"condition": [1, 2], "guidance": 0.5} if name == "classes" else {}
    variant = bundle.variant("cpu-fp32", "cpu")
    with OnnxRuntimeBackend(bundle, variant, threads=1) as backend:
        sampler = Sampler(bundle, variant, backend)
        noise = sampler.noise(2, seed=8)
        sampler.generate(noise, **condition)  # leaves its conditions in the runner
        runner = backend.continuous_runner()

        def right_side(t: float, x: NDArray) -> NDArray:
            return runner.velocity(x.reshape(noise.shape).astype(np.float32), t).ravel().astype(np.float64)

        solution = solve_ivp(
            right_side, (0, 1), noise.ravel().astype(np.float64), method="DOP853", rtol=1e-7, atol=1e-7
        )
        expected = solution.y[:, -1].reshape(noise.shape)

        def end(plan: Plan) -> NDArray:
            sampler.plan = plan
            return sampler.generate(noise, **condition)

        steps_of = {"midpoint": 200, "heun": 200, "rk4": 20}
        ends = {solver: end(integration_plan(solver, steps)) for solver, steps in steps_of.items()}
        # 1e-5 would take Euler's method 100,000 steps, and float32 does not count so far. Its error is a h + b h^2 + ...:
        # three runs tell where it goes.
        coarse, middle, fine = (end(integration_plan("euler", steps)) for steps in (40, 80, 160))
        ends["euler"] = (8 * fine - 6 * middle + coarse) / 3
        ends["dopri5"] = end(integration_plan("dopri5", tolerance=3e-7))
    size = np.abs(expected).max()
    for solver, found in ends.items():
        error = np.abs(found - expected).max()
        print(f"{name} {solver}: {error:.1e} of {size:.1f}")
        assert error < 1e-5, solver


def test_weights_are_stored_once_whatever_the_lowering(models: dict) -> None:
    network, bundle = models["text"]
    manifest = bundle.continuous
    files = {variant.precision: variant.weights for variant in manifest.variants}
    assert len(manifest.variants) == 4 and len({file.path for file in files.values()}) == 2
    parameters = sum(p.numel() for p in network.parameters())
    with safe_open(bundle.root / files["fp32"].path, "np") as file:
        stored = {name: np.prod(file.get_slice(name).get_shape()) for name in file.keys() if "_padding" not in name}  # noqa: SIM118
    tables = {name for name in stored if name not in dict(network.named_parameters()) and not name.endswith(".scale")}
    assert tables == {"time_frequencies", "rotary.cos", "rotary.sin"}
    assert sum(size for name, size in stored.items() if name not in tables) == parameters
    for variant in manifest.variants:
        (graph,) = variant.graphs
        assert (bundle.root / graph.file.path).stat().st_size < 120_000, "graphs hold no weights"


def test_other_sizes_and_text_lengths_are_exported(tmp_path: Path) -> None:
    network, bundle = written(velocity_config(**TEXT), tmp_path, shape=(4, 12), condition_tokens=5)
    given, y, null = conditions(velocity_config(**TEXT), tokens=5)
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 12), np.float32)
    for variant in ("cpu-fp32", "portable-fp32"):
        with OnnxRuntimeBackend(bundle, bundle.variant(variant, "cpu"), threads=1) as backend:
            runner = backend.continuous_runner()
            runner.condition(given)
            expected = in_torch(network, x, 0.6, y, null, given.guidance)
            np.testing.assert_allclose(runner.velocity(x, 0.6), expected, atol=1e-5)


def test_without_guidance_half_the_rows_run(tmp_path: Path, continuous_checkpoint: Path) -> None:
    export_checkpoint(continuous_checkpoint, tmp_path / "plain", ExportOptions(batch=2, guidance=False))
    _, network = load_continuous(continuous_checkpoint)
    with Sampler.open(tmp_path / "plain", plan=integration_plan("midpoint", 10), threads=1) as sampler:
        assert not sampler.bundle.continuous.guided
        noise = sampler.noise(2)
        expected = network.reverse(torch.from_numpy(noise), torch.tensor([1, 2]), steps=10).numpy()
        np.testing.assert_allclose(sampler.generate(noise, [1, 2]), expected, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_shape_is_computed(models: dict, name: str) -> None:
    """What computes shapes would run on the host, take inputs of the graph with it, and keep a GPU's run from being captured."""
    bundle: Bundle = models[name][1]
    path = bundle.path(bundle.graph(bundle.variant("portable-fp32", "portable"), 0).file)
    graph = onnx.load(path, load_external_data=False).graph
    assert [node.name for node in graph.node if node.op_type in ("Shape", "Size", "NonZero")] == []
