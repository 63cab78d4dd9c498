"""Every single wrong option of every recorded model: the error names it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from starflow.runtime.plain.errors import CheckpointError
from starflow.training.autoregressive.model import FlowModel, build_model
from starflow.training.autoregressive.state_check import check_tensors, is_unused
from starflow.training.config import StarflowConfig, TarflowConfig
from tests.conformance.cases import Case, find_cases
from tests.conformance.torch_calls import model_config

CASES = [case for case in find_cases(Path(__file__).parent.parent / "data" / "conformance") if not case.unsupported()]
# Options no shape depends on: a wrong one cannot be seen.
WITHOUT_SHAPE = {"seq_order", "use_softplus", "soft_clip", "hf_style_rope"}


def meta_model(config: StarflowConfig | TarflowConfig) -> FlowModel:
    with torch.device("meta"):
        return build_model(config)


def case_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in case.weights.items()}


def other_values(option: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if option == "norm_type":
        return ["rms_norm", "layer_norm"]
    if option == "layers_per_block" and isinstance(value, tuple):
        more, fewer = (tuple(max(0, layers + step) for layers in value) for step in (1, -1))
        return [more, fewer, (*value[:-1], value[-1] + 1), (value[0] + 1, *value[1:])]
    if isinstance(value, int):
        return [value - 1, value + 1, value + 4, value // 2, value * 2]
    return [1, 2, 4, 8, 64] if value is None else []


def hints(message: str) -> set[str]:
    return set(message.rpartition("; check ")[2].replace(",", " ").replace(";", " ").split())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_option_is_among_the_hints(case: Case) -> None:
    config = model_config(case)
    shapes = case_shapes(case)
    check_tensors(case.name, shapes, meta_model(config))
    fitting = {name: tuple(value.shape) for name, value in meta_model(config).state_dict().items()}
    noticed = set()
    for option, value in config.model_dump().items():
        for other in other_values(option, value):
            if other == value or option in ("family", "top_block_override"):
                continue
            try:
                model = meta_model(type(config).model_validate(config.model_dump() | {option: other}))
            except ValidationError:
                continue
            try:
                check_tensors(case.name, shapes, model)
            except CheckpointError as error:
                assert option in hints(str(error)), f"{option} {value} -> {other}: {error}"
                assert "\n" not in str(error)
                assert "more than one reason" not in str(error)  # one option explains it all
                noticed.add(option)
            else:
                assert {name: tuple(v.shape) for name, v in model.state_dict().items()} == fitting
    assert {"in_channels", "channels", "num_blocks", "layers_per_block"} <= noticed
    assert not noticed & WITHOUT_SHAPE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_lost_added_or_changed_tensor_is_named(case: Case) -> None:
    model, shapes = meta_model(model_config(case)), case_shapes(case)
    for name in (name for name in shapes if not is_unused(name)):
        without = {other: shape for other, shape in shapes.items() if other != name}
        with pytest.raises(CheckpointError, match=f"{name} .*is missing; check "):
            check_tensors("w", without, model)
        with pytest.raises(CheckpointError, match=f"{name} is .*, the configuration makes it .*; check "):
            check_tensors("w", shapes | {name: (*shapes[name], 3)}, model)
    with pytest.raises(CheckpointError, match=r"blocks.0.extra.weight \[3\] is surplus; check the configuration$"):
        check_tensors("w", shapes | {"blocks.0.extra.weight": (3,)}, model)


def test_unused_buffers_may_be_absent_but_not_of_another_size() -> None:
    case = next(case for case in CASES if case.name == "S01_forward")
    model, shapes = meta_model(model_config(case)), case_shapes(case)
    check_tensors("w", {name: shape for name, shape in shapes.items() if not is_unused(name)}, model)
    with pytest.raises(
        CheckpointError, match=r"blocks.0.attn_mask is \[45, 45\].*\[44, 44\]; check img_size, .* txt_size"
    ):
        check_tensors("w", shapes | {"blocks.0.attn_mask": (45, 45)}, model)
    with pytest.raises(
        CheckpointError, match=r"var is \[49, 4\].*\[36, 4\]; check img_size, patch_size or pt_seq_len$"
    ):
        check_tensors("w", shapes | {"var": (49, 4)}, model)


def test_foreign_weights() -> None:
    starflow, tarflow = (
        next(case for case in CASES if case.name == name) for name in ("S03_reverse_guided", "T1_unconditional")
    )
    with pytest.raises(CheckpointError, match="more than one reason: check the family"):
        check_tensors("w", case_shapes(starflow), meta_model(model_config(tarflow)))
    with pytest.raises(CheckpointError, match="w: holds no flow block"):
        check_tensors("w", {"layer1.0.conv1.weight": (64, 64, 3, 3)}, meta_model(model_config(tarflow)))
    with pytest.raises(CheckpointError, match=r"is surplus; check learnable_self_denoiser$"):
        shapes = case_shapes(starflow) | {"learnable_self_denoiser.proj_in.weight": (1,)}
        check_tensors("w", shapes, meta_model(model_config(starflow)))
