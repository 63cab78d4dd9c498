"""Targets: what is understood, and what each mistake is told."""

from pathlib import Path
from types import ModuleType

import pytest

from starflow.export.tensorrt.target import choose_capabilities, parse_target
from starflow.runtime.backends.tensorrt.flavour import Flavour
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.plain.errors import BackendError, UsageError

pytestmark = pytest.mark.usefixtures("rtx")


def test_capabilities_are_sorted_by_number_and_named_once() -> None:
    parsed = parse_target("tensorrt-rtx:12.0,8.9,12.0,7.5")
    assert parsed.compute_capabilities == ("7.5", "8.9", "12.0")
    assert parsed.name == "tensorrt-rtx-7.5_8.9_12.0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trt:8.9", "TensorRT flavour 'trt' is not known"),
        ("tensorrt-rtx", "name the compute capabilities.*8.9, 12.0"),
        ("tensorrt-rtx:", "'' is not a compute capability"),
        ("tensorrt-rtx:sm89", "'sm89' is not a compute capability.*tensorrt-rtx:8.9,12.0"),
        ("tensorrt-rtx:8.9,", "'' is not a compute capability"),
        ("tensorrt-rtx:8.9,9.0", "cannot build for compute capability 9.0.*data-centre.*Hopper.*--target tensorrt$"),
        ("tensorrt-rtx:1.0", "cannot build for compute capability 1.0, only for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
    ],
)
def test_what_is_no_target(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_target(text)


def test_a_flavour_that_builds_for_the_present_gpu_takes_no_capability() -> None:
    flavour = Flavour("tensorrt", ModuleType("tensorrt"))  # has no ComputeCapability, as the real one
    with pytest.raises(UsageError, match="builds for the GPU of this machine"):
        choose_capabilities(flavour, ["9.0"])


def test_a_flavour_that_builds_for_the_present_gpu_needs_one() -> None:
    flavour = Flavour("tensorrt", ModuleType("tensorrt"))
    try:
        found = choose_capabilities(flavour, [])
    except BackendError as error:
        assert "builds for the GPU of this machine, which cannot be used" in str(error)
        assert "tensorrt-rtx:8.9" in str(error)
    else:  # on a machine with a GPU
        assert len(found) == 1


@pytest.mark.parametrize(
    ("precision", "too_old", "instead", "enough"),
    [("bf16", "7.5", "fp16", "8.0,12.0"), ("fp8", "8.6", "int8", "8.9,12.0")],
)
def test_some_precisions_need_a_younger_gpu(
    tiny_bundle: Path, precision: str, too_old: str, instead: str, enough: str
) -> None:
    name = f"portable-{precision}"
    variant = (
        Bundle.open(tiny_bundle)
        .variant("portable-fp16", "portable")
        .model_copy(update={"precision": precision, "name": name})
    )
    message = rf"{name}: GPUs of compute capability {too_old} cannot compute in {precision}; .*a variant in {instead}"
    with pytest.raises(UsageError, match=message):
        parse_target(f"tensorrt-rtx:8.9,{too_old}").check_variant(variant)
    parse_target(f"tensorrt-rtx:{enough}").check_variant(variant)


def test_a_variant_for_the_cpu_cannot_be_built(tiny_bundle: Path) -> None:
    variant = Bundle.open(tiny_bundle).variant("cpu-fp16", "portable")
    with pytest.raises(UsageError, match="ONNX Runtime on a CPU"):
        parse_target("tensorrt-rtx:8.9").check_variant(variant)
