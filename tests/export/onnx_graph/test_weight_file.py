"""Weights: readable by any safetensors reader, aligned, stored once, and refused where they are not numbers."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.export.onnx_graph.weight_file import ALIGNMENT, PAGE, WeightFile
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import ExportError
from starflow.training.autoregressive.model import AutoregressiveFlow
from tests.models import class_config, write_checkpoint


def test_any_reader_reads_it_and_offsets_are_aligned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "a": rng.standard_normal((3, 5), np.float32),
        "b": rng.standard_normal(7).astype(np.float16),
        "c.transposed": rng.standard_normal((4, 6), np.float32).T,
        "scalar": np.array(3.5, np.float32),
    }
    path = tmp_path / "weights.safetensors"
    with WeightFile(path) as file:
        stored = {name: file.add(name, partial(arrays.__getitem__, name)) for name in arrays}
        again = file.add("a", lambda: pytest.fail("loaded twice"))
        assert again is stored["a"], "the same name is stored once"
    read = load_file(path)
    content = path.read_bytes()
    for name, array in arrays.items():
        assert np.array_equal(read[name], array)
        where = stored[name]
        assert where.offset % ALIGNMENT == 0
        assert content[where.offset : where.offset + where.length] == np.ascontiguousarray(array).tobytes()
    assert stored["a"].offset % PAGE == 0


def test_a_header_without_room_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="header needs"), WeightFile(tmp_path / "w", header_room=PAGE) as file:
        for index in range(100):
            file.add(f"a.rather.long.name.for.a.tensor.{index}", lambda: np.zeros(1, np.float32))


def test_graphs_of_a_precision_share_one_copy_of_every_parameter(
    tiny_bundle: Path, tiny_model: AutoregressiveFlow
) -> None:
    for precision, size in (("fp32", 4), ("fp16", 2)):
        path = tiny_bundle / "graphs" / "weights" / f"{precision}.safetensors"
        names = [name for name in load_file(path) if not name.startswith("_padding")]
        parameters = {name for name, _ in tiny_model.named_parameters()}
        same = parameters & set(names)
        derived = {name.replace(".weight", ".scale") for name in parameters if "final_norm" in name}
        assert parameters - same == {name.replace(".scale", ".weight") for name in derived}
        assert set(names) - same - derived == {
            f"rotary.axes.32.{where}.{kind}" for where in ("0+4x4", "1+4x4") for kind in ("cos", "sin")
        }
        matrices = sum(p.numel() for p in tiny_model.parameters() if p.ndim == 2)
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert matrices * size < path.stat().st_size - header < matrices * size * 1.6


def test_every_external_tensor_is_the_checkpoints(tiny_bundle: Path, tiny_model: AutoregressiveFlow) -> None:
    weights = load_file(tiny_bundle / "graphs" / "weights" / "fp32.safetensors")
    state = {name: value.numpy() for name, value in tiny_model.state_dict().items()}
    raw = (tiny_bundle / "graphs" / "weights" / "fp32.safetensors").read_bytes()
    checked = 0
    for path in (tiny_bundle / "graphs").glob("*-fp32.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            fields = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(fields["offset"]), int(fields["length"])
            found = np.frombuffer(raw[start : start + length], np.float32).reshape(tuple(tensor.dims))
            assert np.array_equal(found, weights[tensor.name])
            if tensor.name in state:
                assert np.array_equal(found, state[tensor.name])
                checked += 1
    assert checked > 40


def test_manifest_counts_the_bytes_a_step_reads(tiny_bundle: Path, tiny_model: AutoregressiveFlow) -> None:
    bundle = Bundle.open(tiny_bundle)
    for variant in bundle.manifest.variants:
        total = sum(graph.weight_bytes for graph in variant.graphs)
        parameters = sum(p.numel() for p in tiny_model.parameters())
        item = 2 if variant.name == "portable-fp16" else 4  # the cpu lowering widens half weights when it loads
        assert parameters * item <= total < parameters * item * 1.2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    model = write_checkpoint(tmp_path / "checkpoint", class_config())
    name = "blocks.1.attn_blocks.1.mlp.main.2.weight"
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[name][3, 4] = value
    save_file(state, tmp_path / "checkpoint" / "model.safetensors")
    with pytest.raises(ExportError, match=name):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"], "nothing half-written"


def test_weights_too_large_for_half_precision_are_named(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "checkpoint", class_config())
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["blocks.0.proj_in.weight"][0, 0] = 1e6
    save_file(state, tmp_path / "checkpoint" / "model.safetensors")
    with pytest.raises(ExportError, match=r"blocks\.0\.proj_in\.weight reaches 1e\+06.*--precision bf16 or fp32"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(precisions=("fp16",)))
