"""A release of ONNX Runtime that is too old for a variant is named before anything runs."""

from pathlib import Path

import onnxruntime
import pytest

from starflow.runtime.backends.onnxruntime.release import check_release
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError


@pytest.mark.parametrize(
    ("installed", "cache", "refused"),
    [("1.24.9", "float32", "1.25"), ("1.26.1", "int8", "1.27"), ("1.26.1", "float32", None), ("2.0.0", "int8", None)],
)
def test_a_release_that_is_too_old_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, installed: str, cache: str, refused: str | None
) -> None:
    variant = Bundle.open(tiny_bundle).variant("cpu-fp32", "cpu")
    graphs = tuple(
        graph.model_copy(
            update={
                "inputs": tuple(
                    spec.model_copy(update={"dtype": cache}) if spec.role == "cache" else spec for spec in graph.inputs
                )
            }
        )
        for graph in variant.graphs
    )
    monkeypatch.setattr(onnxruntime, "__version__", installed)
    changed = variant.model_copy(update={"graphs": graphs})
    if refused is None:
        check_release(changed)
        return
    with pytest.raises(
        BackendError, match=rf"cpu-fp32 needs ONNX Runtime {refused} or newer, this is {installed}; .*pip"
    ):
        check_release(changed)
