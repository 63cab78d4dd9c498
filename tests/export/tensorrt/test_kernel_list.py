"""What a run of an engine launches, read from the list of a real build, without a GPU."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.tensorrt.build import BuildRequest, BuiltEngine, build_bundle
from starflow.export.tensorrt.kernel_list import EngineLayer, count_kernels, read_layers
from starflow.export.tensorrt.target import parse_target
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.command_line import main
from tests.made_once import MadeOnce
from tests.models import features_config, write_checkpoint

LAYERS = 2
TOKENS = (1, 4, 16)


@pytest.fixture(scope="module", params=["8.9", "12.0"])
def engine(request: pytest.FixtureRequest, rtx: None, made_once: MadeOnce, tmp_path_factory: Any) -> BuiltEngine:
    """The engine of a deep block with guidance and a condition that is projected, with its list."""

    def fill(folder: Path) -> None:
        config = features_config()
        changes = {
            "channels": 1024,
            "head_dim": 64,
            "num_blocks": 1,
            "layers_per_block": (LAYERS,),
        }  # narrow blocks never had a second stream
        model = config.model.model_copy(update=changes)
        write_checkpoint(folder / "checkpoint", config.model_copy(update={"model": model}))
        export_checkpoint(folder / "checkpoint", folder / "bundle", ExportOptions(precisions=("fp16",)))

    root = shutil.copytree(made_once("kernel-list", fill) / "bundle", tmp_path_factory.mktemp("kernels") / "bundle")
    target = parse_target(f"tensorrt-rtx:{request.param}")
    (built,) = build_bundle(Bundle.open(root), target, BuildRequest(profile_tokens=TOKENS, kernels=True))
    return built


def test_a_step_launches_no_more_than_it_did(engine: BuiltEngine) -> None:
    """A lower bound on what a step costs: kernels that wait for each other take a microsecond or two each, whatever they do."""
    step = engine.kernels[0]
    assert (step.attentions, step.per_layer) == (LAYERS, 8), "attention is fused, and its layer is as short as it was"
    assert step.kernels <= 8 * LAYERS + 5
    assert (step.moves, step.reformats, step.streams) == (0, 0, 1)


def test_no_run_copies_from_the_host(engine: BuiltEngine) -> None:
    """A CUDA graph would replay a copy out of memory that belongs to TensorRT."""
    assert [count.uploads for count in engine.kernels] == [0] * len(TOKENS)


def test_a_chunk_launches_no_more_than_it_did(engine: BuiltEngine) -> None:
    """Three kernels a layer move values about: K and V before, and the result behind, attention of several tokens."""
    for chunk in engine.kernels[1:]:
        assert (chunk.attentions, chunk.per_layer) == (LAYERS, 11)
        assert chunk.kernels <= 11 * LAYERS + 7
        assert (chunk.moves, chunk.reformats, chunk.streams) == (3 * LAYERS, 0, 1)


# The list itself, as another release may print it

LINES = """Engine Layer Information:
Layers:
Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: Shape, Dimensions: [1] }]
Name: __myl_CastMul_myl1_0, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [2] }], StreamId: 0, Metadata:
Name: Reformatting CopyNode for Input Tensor 0, LayerType: Reformat, Inputs: [ { Name: x }], StreamId: 1, Metadata:
Name: __mye12_0_myl3_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: __myl_TranResh_myl3_1, LayerType: kgen, Inputs: [ { Name: k [profile 1], Dimensions: [2] }], StreamId: 2, Metadata:
Name: _gemm_mha_v2_myl3_2, LayerType: kgen, Inputs: [ { Name: k_mye, Dimensions: [2] }], StreamId: 0, Metadata:
Name: layer3/Gemm.3 [profile 1]_myl3_3, LayerType: gemm, Inputs: [ { Name: k, Dimensions: [2] }], StreamId: 0, Metadata:
Name: _gemm_mha_v2_myl3_4, LayerType: kgen, Inputs: [ { Name: k_mye, Dimensions: [2] }], StreamId: 0, Metadata:"""


def test_what_a_line_is() -> None:
    layers = read_layers(["something else", LINES, "Name: x, IOMode: Input"])
    assert [(layer.profile, layer.stream, layer.kind) for layer in layers] == [
        (0, 0, "ShapeHostToDevice"), (0, 0, "kgen"), (0, 1, "Reformat"), (1, 0, "shape_call"), (1, 2, "kgen"),
        (1, 0, "kgen"), (1, 0, "gemm"), (1, 0, "kgen"),
    ]  # fmt: skip
    assert [layer.name for layer in layers if layer.moves_only] == ["__myl_TranResh_myl3_1"]


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (0, {"kernels": 1, "per_layer": None, "attentions": 0, "moves": 0, "reformats": 1, "uploads": 1, "streams": 2}),
        (1, {"kernels": 4, "per_layer": 2, "attentions": 2, "moves": 1, "reformats": 0, "uploads": 0, "streams": 2}),
    ],
)
def test_what_is_counted(profile: int, expected: dict[str, int | None]) -> None:
    found = count_kernels(layer for layer in read_layers([LINES]) if layer.profile == profile)
    assert dataclasses.asdict(found) == expected


def test_a_kernel_that_computes_is_no_move() -> None:
    assert not EngineLayer("__myl_ReshCast_myl1_0", "kgen", 0, 0).moves_only
    assert not EngineLayer("layer3/Gemm.3_myl1_0", "gemm", 0, 0).moves_only


# The command


def test_the_command_lists_engines_that_are_there(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(built), "--target", "tensorrt-rtx:8.9,12.0", "--profile-tokens", "1", "--kernels"]
    assert main([*arguments, "--json"]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert [(len(engine["kernels"]), engine["unchanged"]) for engine in engines] == [(1, False)] * 2
    assert all(engine["kernels"][0]["uploads"] == 0 for engine in engines)
    assert main(arguments) == 0
    assert "kernels and copies of one run" in capsys.readouterr().out
