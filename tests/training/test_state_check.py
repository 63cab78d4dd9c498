"""Tensors that do not fit a model are named, with the shapes found and expected."""

from pathlib import Path
from typing import Any

import pytest
import torch

from starflow.runtime.plain.errors import CheckpointError
from starflow.training.continuous.config import ContinuousMlpConfig, ContinuousTransformerConfig
from starflow.training.families import build_flow
from starflow.training.flow import Flow
from starflow.training.state_check import check_tensors
from tests.conformance.cases import Case, find_cases
from tests.conformance.torch_calls import model_config

Shapes = dict[str, tuple[int, ...]]
CASES = [case for case in find_cases(Path(__file__).parent.parent / "data" / "conformance") if not case.unsupported()]


def meta_model(config: Any) -> Flow:
    with torch.device("meta"):
        return build_flow(config)


def recorded(name: str) -> tuple[Flow, Shapes]:
    case = next(case for case in CASES if case.name == name)
    return meta_model(model_config(case)), case_shapes(case)


def case_shapes(case: Case) -> Shapes:
    return {name: tuple(value.shape) for name, value in case.weights.items()}


def refused(shapes: Shapes, model: Flow) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_tensors("w", shapes, model, options="the options")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_every_tensor(shapes: Shapes, model: Flow) -> None:
    check_tensors("w", shapes, model)
    for name, value in model.state_dict().items():
        shape = list(value.shape)
        without = {other: found for other, found in shapes.items() if other != name}
        assert refused(without, model) == f"w: {name}: found no such tensor, expected shape {shape}; check the options"
        changed = refused(shapes | {name: (*shape, 3)}, model)
        assert changed == f"w: {name}: found shape {[*shape, 3]}, expected shape {shape}; check the options"
    surplus = refused(shapes | {"blocks.0.extra.weight": (3,)}, model)
    assert surplus == "w: blocks.0.extra.weight: found shape [3], expected no such tensor; check the options"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_lost_added_or_changed_tensor_of_a_recorded_model_is_named(case: Case) -> None:
    check_every_tensor(case_shapes(case), meta_model(model_config(case)))


@pytest.mark.parametrize(
    "config",
    [
        ContinuousTransformerConfig(in_channels=1, img_size=8, channels=32, layers=2, head_dim=8, num_classes=3),
        ContinuousMlpConfig(dimensions=2, channels=8, layers=2),
    ],
    ids=lambda config: config.network,
)
def test_a_lost_added_or_changed_tensor_of_a_continuous_flow_is_named(config: Any) -> None:
    model = meta_model(config)
    check_every_tensor({name: tuple(value.shape) for name, value in model.state_dict().items()}, model)


def test_unused_buffers_may_be_absent_but_not_of_another_size() -> None:
    model, shapes = recorded("S01_forward")
    used = model.state_dict().keys()
    assert {"var", "blocks.0.attn_mask", "feat_rope.freqs_cos"} <= shapes.keys() - used
    check_tensors("w", {name: shape for name, shape in shapes.items() if name in used}, model)
    assert refused(shapes | {"blocks.0.attn_mask": (45, 45)}, model).startswith(
        "w: blocks.0.attn_mask: found shape [45, 45], expected shape [44, 44]"
    )
    assert "var: found shape [49, 4], expected shape [36, 4]" in refused(shapes | {"var": (49, 4)}, model)


@pytest.mark.parametrize(
    ("option", "change"),
    [("num_blocks", -1), ("img_size", 2), ("channels", 16), ("txt_dim", 1), ("txt_size", 1)],
)
def test_a_wrong_option_is_noticed(option: str, change: int) -> None:
    case = next(case for case in CASES if case.name == "S01_forward")
    config = model_config(case)
    changed = type(config).model_validate(config.model_dump() | {option: getattr(config, option) + change})
    assert "found" in refused(case_shapes(case), meta_model(changed))


def test_the_tensors_of_another_model_are_counted() -> None:
    (tarflow, _), (starflow, _) = recorded("T1_unconditional"), recorded("S03_reverse_guided")
    expected, found = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()} for model in (tarflow, starflow)
    )
    differing = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    assert refused(found, tarflow).endswith(f"; {len(differing) - 1} other tensors do not fit; check the options")


def test_a_continuous_flow_ignores_no_buffer() -> None:
    model = meta_model(ContinuousMlpConfig(dimensions=2, channels=8, layers=2))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert "var: found shape [16, 4], expected no such tensor" in refused(shapes | {"var": (16, 4)}, model)
