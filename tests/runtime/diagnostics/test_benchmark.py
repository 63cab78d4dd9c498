"""`starflow bench`: what it compares, what errors are relative to, and what it draws."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from starflow.runtime import Sampler
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.bytes_read import step_bytes
from starflow.runtime.command_line import main
from starflow.runtime.plain.install_hint import install_hint

QUICK = ["--repetitions", "1", "--threads", "1"]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """Run a command with --json and read what it prints."""
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("tiny_bundle", {1: 16, 0: 16}), ("patches_bundle", {2: 4, 1: 8, 0: 16})],
)
def test_every_block_is_measured_against_its_floor(
    name: str, tokens: dict[int, int], request: pytest.FixtureRequest, capsys: Any
) -> None:
    """Units are the 16 tokens of the model, so that a block with fewer tokens reads less for each of them."""
    names, root = ["cpu-fp32", "portable-fp32"], request.getfixturevalue(name)
    told = answer(capsys, "bench", root, "--repetitions", "2", "--threads", "1", "--variant", *names)
    bundle = Bundle.open(root)
    assert [variant["variant"] for variant in told["variants"]] == names
    for variant in told["variants"]:
        *rows, total = variant["rows"]
        assert [row["block"] for row in rows] == list(tokens) and total["block"] is None
        for row in rows:
            graph = bundle.graph(bundle.variant(variant["variant"], "cpu"), row["block"])
            each = step_bytes(graph, bundle.autoregressive.blocks[row["block"]])
            assert row["bytes"] == pytest.approx(each * tokens[row["block"]] / 16, abs=1)
            assert row["passes"] == tokens[row["block"]]
            assert row["floor_milliseconds"] == pytest.approx(1000 * row["bytes"] / told["bandwidth"])
            assert row["memory_bandwidth_percent"] == row["percent_of_floor"]
            assert row["percent_of_floor"] == pytest.approx(100 * row["floor_milliseconds"] / row["milliseconds"])
        assert total["bytes"] == sum(row["bytes"] for row in rows)
        assert variant["images_per_second"] == pytest.approx(1000 / variant["image_milliseconds"])
        assert variant["image_milliseconds"] == pytest.approx(total["milliseconds"] * 16 / 2)  # tokens, batch


def test_errors_are_relative_to_the_most_precise_variant(tiny_bundle: Path, capsys: Any) -> None:
    names = ["cpu-fp16", "portable-fp32", "cpu-fp32"]
    told = answer(capsys, "bench", tiny_bundle, *QUICK, "--variant", *names)
    assert told["exact"] == "portable-fp32"  # the first of two that are equally precise
    half, exact, single = told["variants"]
    assert exact["error"] is None
    samples = {}
    for name in names:
        with Sampler.open(tiny_bundle, variant=name, threads=1) as sampler:
            samples[name] = sampler.generate(sampler.noise(2), [0, 1], guidance=1.0)
    reference = samples["portable-fp32"]
    for timing in (half, single):
        expected = np.linalg.norm(samples[timing["variant"]] - reference) / np.linalg.norm(reference)
        assert timing["error"] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert half["error"] > 100 * single["error"]


def test_one_table_compares_and_blocks_come_on_request(tiny_bundle: Path, capsys: Any) -> None:
    assert main(["bench", str(tiny_bundle), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "exact" in printed and "predicted" in printed and "by flow block" not in printed
    assert "…" not in printed, "a column does not fit into 80 characters"
    assert main(["bench", str(tiny_bundle), *QUICK, "--blocks", "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "cpu-fp32, sequential, by flow block" in printed and "between operators" in printed


def test_the_plot_is_drawn_and_checked_beforehand(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    plot = tmp_path / "bench.png"
    assert main(["bench", str(tiny_bundle), *QUICK, "--plot", str(plot), "--explain"]) == 0
    with Image.open(plot) as image:
        assert image.width > 500 and len(image.getcolors(1 << 20) or ()) > 20
    assert list(tmp_path.iterdir()) == [plot]
    capsys.readouterr()
    assert main(["bench", str(tiny_bundle), "--plot", str(tmp_path / "bench.doc")]) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1 and ".png" in refused


def test_a_plot_without_matplotlib_names_the_extra(
    tiny_bundle: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", str(tiny_bundle), "--plot", str(tmp_path / "bench.png")]) == 1
    refused = capsys.readouterr()
    assert refused.out == "" and refused.err.count("\n") == 1
    assert install_hint("export") in refused.err
