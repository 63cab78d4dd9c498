"""Memory: the gauge against allocations of known size, the prediction against shapes and against a process."""

import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from starflow.export.exporter import ExportOptions, export_checkpoint
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Quantization
from starflow.runtime.diagnostics.memory_use import MemoryGauge, predict_memory
from tests.models import class_config, write_checkpoint

MIB = 2**20
NEAR = pytest.approx
pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell")


def anonymous_memory(size: int) -> mmap.mmap:
    """Pages of its own that closing gives back. An allocator may keep what it frees, or reuse what was freed before."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 1
    return memory


def test_the_gauge_sees_what_stays_and_what_was_there_meanwhile() -> None:
    gauge = MemoryGauge([])
    kept = anonymous_memory(48 * MIB)
    anonymous_memory(96 * MIB).close()
    grown = gauge.grown()
    assert grown and grown.resident == NEAR(48 * MIB, abs=4 * MIB) and grown.peak == NEAR(144 * MIB, abs=8 * MIB)
    kept.close()
    again = MemoryGauge([]).grown()  # an earlier peak does not count
    assert again and again.peak < 8 * MIB


def test_mapped_files_count_where_they_are_the_bundles(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    gauge = MemoryGauge([own])
    maps = []
    for path in (own, other):
        with path.open("wb") as file:
            for _ in range(32):  # a block of 32 MiB might stay in the heap
                file.write(b"\1" * MIB)
        maps.append(np.memmap(path, np.uint8, "r"))
        assert maps[-1].sum() == 32 * MIB  # reads every page
    grown = gauge.grown()
    assert grown and grown.resident == NEAR(32 * MIB, abs=4 * MIB)


def test_prediction_adds_up_what_the_manifest_says(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    variant = bundle.variant("cpu-fp32", "cpu")
    found = predict_memory(bundle, variant)
    assert found.weights == sum(graph.weight_bytes for graph in variant.graphs)
    deep, shallow = 2 * 2 * 4 * 17 * 32, 2 * 1 * 2 * 16 * 32  # k and v, layers, rows, capacity, head
    assert found.caches == 4 * (deep + shallow)
    noise_and_samples = 2 * 2 * (17 + 16) * 4 * 4  # of either kind: batch, capacities, width, bytes
    assert noise_and_samples < found.buffers < noise_and_samples + 2000
    assert found.total == found.weights + found.caches + found.buffers


def test_scales_of_quantised_matrices_are_there_three_times(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    variant = bundle.variant("cpu-fp32", "cpu")
    root = tmp_path / "graphs"
    root.mkdir()
    tensors: dict[str, NDArray] = {
        "a.int8": np.zeros((6, 2, 8), np.uint8),
        "a.int8.scales": np.zeros((6, 2), np.float32),
    }
    save_file(tensors, root / "quantised.safetensors")
    quantised = variant.model_copy(
        update={
            "quantization": Quantization(
                source="cpu-fp32",
                budget=0.1,
                error=0.1,
                plain_error=None,
                images=1,
                guidance=0.0,
                matrices={"a": "int8"},
            ),
            "weights": variant.weights.model_copy(update={"path": "graphs/quantised.safetensors"}),
        }
    )
    exact, found = predict_memory(bundle, variant), predict_memory(Bundle(tmp_path, bundle.manifest), quantised)
    assert found.weights - exact.weights == 2 * 6 * 2 * 4


@pytest.mark.parametrize("batch", [1, 8])
def test_a_process_takes_what_was_predicted(tmp_path: Path, batch: int) -> None:
    """Within 5 % (weights 75 MB, caches 6 and 48 MB), though nothing that a session needs for itself is predicted."""
    changes = {"channels": 512, "head_dim": 64, "num_blocks": 1, "layers_per_block": (6,), "patch_size": 1}
    write_checkpoint(tmp_path / "checkpoint", class_config(**changes))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(batch=batch))
    command = [sys.executable, "-m", "starflow.runtime", "bench", str(tmp_path / "bundle"), "--variants", "cpu-fp32"]
    done = subprocess.run(
        [*command, "--repetitions", "1", "--threads", "1", "--json"], check=True, capture_output=True, text=True
    )
    (memory,) = json.loads(done.stdout)["memory"]
    assert memory["predicted"]["weights"] > 70e6
    assert memory["measured"]["resident"] == NEAR(memory["predicted"]["total"], rel=0.05)
    assert memory["measured"]["peak"] < memory["predicted"]["total"] + 24 * MIB  # weights are never there twice
