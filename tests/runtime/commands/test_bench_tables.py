"""The table of `starflow bench` is whole on a terminal of 80 columns."""

import pytest

from starflow.runtime.commands.bench_tables import print_comparison
from starflow.runtime.diagnostics.benchmark import Benchmark, BlockTiming, VariantTiming
from starflow.runtime.plain.terminal import Terminal


@pytest.mark.parametrize("milliseconds", [0.15, 0.81, 8.98, 89.8, 898.0])
def test_however_fast_the_machine_is(
    milliseconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    total = BlockTiming(None, milliseconds / 196, 1.234, 196, 999 << 10, milliseconds / 100)
    ways = [
        VariantTiming("portable-fp32", "sequential", "", 1, (total,), 1000 / milliseconds, milliseconds, None, None),
        VariantTiming("portable-fp32", "plan", "", 1, (total,), 1000 / milliseconds, milliseconds, 1.0, 0.113),
    ]
    print_comparison(Terminal(), Benchmark(5e10, 5, "token", "portable-fp32", tuple(ways), ()))
    printed = capsys.readouterr().out
    assert "  by its plan " in printed and "1.1e-01" in printed and "…" not in printed
