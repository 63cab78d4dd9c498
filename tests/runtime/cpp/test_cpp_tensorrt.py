"""The native loop of C++ on a simulated device, whose engines run the bundle's graphs on ONNX Runtime's CPU.

So latents must be those of the ordinary path, bit by bit; and whatever the documentation of CUDA and TensorRT forbids fails.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.build_record import BuildOptions
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.graph_spec import fixed_shape
from starflow.runtime.plans.decode_plan import BlockPlan, DecodePlan
from tests.cpp_library import CppError
from tests.models import tarflow_config, write_checkpoint
from tests.runtime.cpp.simulated_library import (
    SimulatedSampler,
    count,
    filled,
    simulated_library,
    with_engines,
    write_engines,
)
from tests.runtime.cpp.test_cpp_sampling import PLANS, segments

pytestmark = pytest.mark.usefixtures("cpp_folder")

BUNDLE, BACKEND = 2, 3  # statuses


@pytest.fixture(autouse=True)
def no_violation() -> Iterator[None]:
    yield
    assert simulated_library().simulated_violations() == b""
    assert simulated_library().simulated_leaks() == b""


def compare(root: Path, variant: str, number: int, condition: Any, null: Any = None, **how: Any) -> NDArray:
    """Sample the same images on both backends; the data, once they are equal."""
    shape = Bundle.open(root).manifest.model.data_shape
    opened = {"plan": str(how.pop("plan", "sequential")), "batch": how.pop("batch", 0)}
    with SimulatedSampler(root, shape, backend="onnxruntime", variant=variant, threads=1, **opened) as sampler:
        noise = sampler.noise(number, 3)
        expected = sampler.generate(noise, condition, null, **how)
    with SimulatedSampler(root, shape, backend="tensorrt", **opened) as sampler:
        found = sampler.generate(noise, condition, null, **how)
        again = sampler.generate(noise, condition, null, **how)
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again, expected)
    return found


@pytest.fixture
def tiny(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Two images of a class-conditional STARFlow, float32."""
    return with_engines(tiny_bundle, tmp_path / "bundle", "portable-fp32")


@pytest.mark.parametrize("variant", ["portable-fp32", "portable-fp16"])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_classes(tiny_bundle: Path, tmp_path: Path, variant: str, guidance: float) -> None:
    root = with_engines(tiny_bundle, tmp_path / "bundle", variant, flavour="tensorrt-rtx")
    compare(root, variant, 3, np.array([0, 1, 2]), guidance=guidance)


@pytest.mark.parametrize("tokens", [(1, 16), (1, 2)])
def test_features_in_one_prefill_and_in_several(
    denoising_bundle: Path, tmp_path: Path, tokens: tuple[int, ...]
) -> None:
    root = with_engines(denoising_bundle, tmp_path / "bundle", "portable-fp32", tokens=tokens)
    given = Bundle.open(root).manifest.conditioning
    condition, null = np.random.default_rng(0).normal(size=(2, 2, given.tokens, given.width)).astype(np.float32)
    # The denoiser is a network beside the flow, which ONNX Runtime runs.
    compare(root, "portable-fp32", 2, condition, null[:1], guidance=2.0, denoise="score")


def test_a_first_token_and_linear_guidance(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", tarflow_config())
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "exported", ExportOptions(batch=2))
    root = with_engines(tmp_path / "exported", tmp_path / "bundle", "portable-fp32")
    compare(root, "portable-fp32", 3, np.array([0, 1, 1]), guidance=1.5)


@pytest.mark.parametrize("name", PLANS)
def test_decode_plans(tiny: Path, tmp_path: Path, name: str) -> None:
    tokens = Bundle.open(tiny).autoregressive.decoded_tokens()
    blocks = tuple(BlockPlan(block=block, segments=segments(PLANS[name], size)) for block, size in tokens.items())
    (tmp_path / "plan.json").write_text(DecodePlan(blocks=blocks).model_dump_json())
    labels = np.array([0, 1])
    found = compare(tiny, "portable-fp32", 2, labels, guidance=1.0, plan=tmp_path / "plan.json")
    assert not np.array_equal(found, compare(tiny, "portable-fp32", 2, labels, guidance=1.0))


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_continuous_flows(continuous_bundle: Path, tmp_path: Path, guidance: float) -> None:
    root = with_engines(continuous_bundle, tmp_path / "bundle", "portable-fp32", tokens=(1,))
    plan = tmp_path / "plan.json"
    for solver, times in (("rk4", [0.0, 0.2, 0.55, 1.0]), ("euler", [index / 300 for index in range(301)])):
        plan.write_text(json.dumps({"solver": solver, "times": times}))
        compare(root, "portable-fp32", 2, np.array([0, 1]), guidance=guidance, plan=plan)


def test_two_tokens_are_one_launch_and_wait_for_nothing(tiny: Path) -> None:
    with SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as sampler:
        noise, labels = sampler.noise(2, 0), np.array([0, 1])
        sampler.generate(noise, labels)
        calls = ("launch", "capture", "synchronize", "enqueue")
        before = {call: count(call) for call in calls}
        sampler.generate(noise, labels)
        passed = {call: count(call) - before[call] for call in calls}
    manifest = Bundle.open(tiny).autoregressive
    tokens = manifest.decoded_tokens()
    prefixes = sum(manifest.blocks[block].prefix for block in tokens)
    assert passed["launch"] == sum(size // 2 + size % 2 for size in tokens.values()) + prefixes
    assert passed["capture"] == passed["enqueue"] == 0
    assert passed["synchronize"] <= 14 * len(tokens)  # what a sequence stores and reads, however long it is


@pytest.mark.parametrize("refuses", ["capture", "run"])
def test_a_refused_capture_runs_without_one_and_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    labels = np.array([0, 1])
    with SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as sampler:
        noise = sampler.noise(2, 0)
        expected = sampler.generate(noise, labels)
        assert sampler.warnings == []
    monkeypatch.setenv("SIMULATED_REFUSES", refuses)
    before = count("launch")
    with SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as sampler:
        np.testing.assert_array_equal(sampler.generate(noise, labels), expected)
        assert re.match(
            r"flow block \d: runs of 1 tokens cannot be captured into a CUDA graph \(.+\)", sampler.warnings[0]
        )
    assert count("launch") == before


def test_caches_are_clear_once_a_block_is_open(tiny: Path) -> None:
    graph = Bundle.open(tiny).variant("portable-fp32", "portable").graphs[0]
    cache = next(spec for spec in graph.inputs if spec.role == "cache")
    with SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as sampler:
        sampler.load()
        size = 4 * math.prod(fixed_shape(cache, 1))
        assert filled(size) == 0
        sampler.generate(sampler.noise(2, 0), np.array([0, 1]))
        assert filled(size) > 0


def test_an_engine_that_does_not_move_on_does_not_open(tiny: Path) -> None:
    """Every step would read the first position."""
    path = tiny / "engines/tensorrt-8.9/portable-fp32/block0.engine"
    graph = json.loads(path.read_text())["graph"]
    model = onnx.load(graph, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["elsewhere" if name == "position_next" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Identity", ["position"], ["position_next"]))
    standing = str(Path(graph).with_name("standing.onnx"))
    onnx.save(model, standing)
    edited(lambda engine: engine.update(graph=standing))(path)
    with (
        SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as sampler,
        pytest.raises(CppError, match="flow block 0: this engine does not move on"),
    ):
        sampler.load()


def test_batch_sizes_need_engines_of_their_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    export_checkpoint(tiny_checkpoint, root, ExportOptions(batch=(1, 3), other_shapes=[(4, 12)]))
    write_engines(Bundle.open(root), "portable-fp32")
    with pytest.raises(CppError, match=r"no engines of portable-fp32 in batches of 1 for Simulated GPU") as refused:
        SimulatedSampler(root, (1, 8, 8), backend="tensorrt")
    assert refused.value.status == BACKEND
    compare(root, "portable-fp32", 4, np.arange(4) % 3, batch=3)
    folder = write_engines(Bundle.open(root).at_batch(1), "portable-fp32")
    assert folder.is_relative_to(root / "engines/batch1")
    compare(root, "portable-fp32", 4, np.arange(4) % 3, guidance=1.0)
    folder = write_engines(Bundle.open(root).at_shape((4, 12)), "portable-fp32")
    with SimulatedSampler(root, (1, 4, 12), backend="tensorrt", height=4, width=12, batch=3) as sampler:
        found = sampler.generate(sampler.noise(3, 3), np.arange(3))
    with SimulatedSampler(
        root, (1, 4, 12), backend="onnxruntime", variant="portable-fp32", height=4, width=12, batch=3
    ) as sampler:
        np.testing.assert_array_equal(found, sampler.generate(sampler.noise(3, 3), np.arange(3)))


def test_samplers_of_two_threads(tiny: Path) -> None:
    """Each is opened in one thread and used in another, which has to choose its GPU first."""
    labels = np.array([0, 1])
    with (
        SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as one,
        SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as two,
        ThreadPoolExecutor(2) as pool,
    ):
        noise = one.noise(2, 0)
        first, second = pool.map(lambda sampler: sampler.generate(noise, labels), (one, two))
    np.testing.assert_array_equal(first, second)


def test_auto_takes_engines_that_fit_and_else_onnxruntime(
    tiny: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launches(root: Path) -> int:
        before = count("launch")
        with SimulatedSampler(root, (1, 8, 8), threads=1) as sampler:
            sampler.generate(sampler.noise(1, 0), np.array([0]))
        return count("launch") - before

    assert launches(tiny) > 0
    assert launches(tiny_bundle) == 0  # has no engines
    monkeypatch.setenv("SIMULATED_CAPABILITY", "9.0")
    assert launches(tiny) == 0


def test_builds_of_the_installed_release_and_of_the_named_variant_come_first(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny)
    options = BuildOptions(workspace_bytes=1 << 20, optimization_level=3)
    write_engines(bundle, "portable-fp16", version="0.9", flavour="tensorrt-rtx", options=options)
    with SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as sampler:
        assert sampler.sizes["height"] == 8
    with pytest.raises(CppError) as refused:
        SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt", variant="portable-fp16")
    assert refused.value.status == BUNDLE
    says = str(refused.value)
    assert "were built by tensorrt-rtx 0.9 and load only there; 1.0 is installed" in says
    record = json.loads((tiny / "engines/tensorrt-rtx-8.9/portable-fp16/build.json").read_text())
    assert record["options"]["workspace_bytes"] == 1 << 20
    command = f"build again: starflow build {tiny} --target tensorrt-rtx:8.9 --variant portable-fp16"
    assert says.endswith(f"{command} --profile-tokens 1,16 --workspace 1048576 --optimization-level 3")
    monkeypatch.setenv("SIMULATED_MISSING", "tensorrt")
    with pytest.raises(CppError, match="tensorrt cannot be loaded"):
        SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt", variant="portable-fp32")


def edited(edit: Callable[[Any], None]) -> Callable[[Path], None]:
    """Damage that makes an engine claim something else, while its file has the size that is recorded."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        edit(content)
        path.unlink()
        path.write_text(json.dumps(content))
        record = path.parent / "build.json"
        builds = json.loads(record.read_text())
        for engine in builds["engines"]:
            if engine["file"]["path"].endswith(path.name):
                engine["file"]["bytes"] = path.stat().st_size
        record.write_text(json.dumps(builds))

    return damage


def first_of(content: Any, what: str) -> Any:
    return next(
        tensor for tensor in content["tensors"] if tensor["updates" if what == "cache" else "name"] not in ("", 0)
    )


def truncate(path: Path) -> None:
    content = path.read_text()
    path.write_text(content[:-1])


def garble(path: Path) -> None:
    path.write_text("x" * path.stat().st_size)


def unlist(path: Path) -> None:
    record = path.parent / "build.json"
    content = json.loads(record.read_text())
    content["engines"] = content["engines"][1:]
    record.write_text(json.dumps(content))


def of_another_graph(path: Path) -> None:
    record = path.parent / "build.json"
    record.write_text(record.read_text().replace('"optimum": 16', '"optimum": 15'))


def newer(path: Path) -> None:
    record = path.parent / "build.json"
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 2'))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (Path.unlink, "is missing"),
    (truncate, "bytes, build.json says"),
    (garble, "cannot load it .Serialization"),
    (unlist, "has no engine for flow block 0"),
    (of_another_graph, "was not built from the present graph"),
    (newer, "schema_version"),
    (edited(lambda engine: first_of(engine, "cache").update(updates="")), "updates is none, the manifest says"),
    (edited(lambda engine: engine["tensors"][0].update(shape=[7])), "'s shape is .7., the manifest says"),
    (edited(lambda engine: engine["tensors"][0].update(type="float16")), "'s type is float16, the manifest says"),
    (edited(lambda engine: engine["tensors"][0].update(device=False)), "'s location is the host"),
    (edited(lambda engine: engine["tensors"][0].update(input=False)), "'s direction is out"),
    (edited(lambda engine: engine["tensors"].pop()), "the number of inputs and outputs"),
    (edited(lambda engine: engine["tensors"][0].update(name="other")), "is missing, the manifest says there"),
    (edited(lambda engine: engine["profiles"].pop()), "the number of optimisation profiles is 1"),
    (edited(lambda engine: engine["profiles"].reverse()), "the range of .* in optimisation profile 0"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_damaged_engines(tiny: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(tiny / "engines/tensorrt-8.9/portable-fp32/block0.engine")
    with pytest.raises(CppError, match=says) as refused:
        SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt")
    assert refused.value.status == BUNDLE and "\n" not in str(refused.value)
    assert "starflow build" in str(refused.value)


def test_a_run_longer_than_the_engines_take(tiny_bundle: Path, tmp_path: Path) -> None:
    root = with_engines(tiny_bundle, tmp_path / "bundle", "portable-fp32", tokens=(1, 4))
    tokens = Bundle.open(root).autoregressive.decoded_tokens()
    blocks = tuple(BlockPlan(block=b, segments=segments(PLANS["passes"], size)) for b, size in tokens.items())
    (tmp_path / "plan.json").write_text(DecodePlan(blocks=blocks).model_dump_json())
    with SimulatedSampler(root, (1, 8, 8), backend="tensorrt", plan=str(tmp_path / "plan.json")) as sampler:
        with pytest.raises(CppError, match=r"take runs of at most 4 tokens, not 5; build again") as refused:
            sampler.generate(sampler.noise(2, 0), np.array([0, 1]))
        assert refused.value.status == BUNDLE


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_too_little_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch, part: float) -> None:
    def sample() -> None:
        with SimulatedSampler(tiny, (1, 8, 8), backend="tensorrt") as sampler:
            sampler.generate(sampler.noise(2, 0), np.array([0, 1]))

    def fits(size: int) -> bool:
        monkeypatch.setenv("SIMULATED_MEMORY", str(size))
        try:
            sample()
        except CppError as error:
            assert error.status == BACKEND and "bytes of GPU memory" in str(error)
            return False
        return True

    least, most = 0, 1 << 24
    while most - least > 1024:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(middle) else (middle, most)
    assert not fits(int(least * part))


def test_names_that_are_not_known(tiny: Path) -> None:
    for wrong, says in (
        ({"backend": "abacus"}, "choose auto, onnxruntime or tensorrt"),
        ({"backend": "tensorrt", "provider": "cuda"}, "leave it out"),
    ):
        with pytest.raises(CppError, match=says) as refused:
            SimulatedSampler(tiny, (1, 8, 8), **wrong)
        assert refused.value.status == 1
