"""Flow blocks with patches of their own: against the Jacobian of the whole flow, and against patches cut by hand."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from starflow.runtime.plain.errors import UsageError
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.families import build_flow
from tests.models import class_config, randomise, tarflow_config

PATCHES = (2, (2, 4), (8, 4))


def starflow(**changes: Any) -> AutoregressiveFlow:
    options: dict[str, Any] = {"in_channels": 2, "num_blocks": 3, "layers_per_block": 1, "block_patch_sizes": PATCHES}
    return randomise(build_flow(class_config(**options | changes).model))


def tarflow() -> AutoregressiveFlow:
    options = tarflow_config().model.model_dump() | {"block_patch_sizes": ((4, 8), 2)}
    model = randomise(build_flow(TarflowConfig(**options)))
    with torch.no_grad():
        model.get_buffer("var").copy_(torch.linspace(0.5, 2, 64).reshape(16, 4))
    return model


def case(model: AutoregressiveFlow, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, model.config.in_channels, 8, 8, generator=generator)
    return x, model.encode_labels(torch.arange(batch) + 1)


@pytest.mark.parametrize("make", [starflow, tarflow])
def test_the_likelihood_is_that_of_the_jacobian(make: Any) -> None:
    model = make()
    x, y = case(model)
    for image, given, found in zip(x, y, model.log_likelihood(x, y), strict=True):

        def noise(values: Tensor, given: Tensor = given) -> Tensor:
            z = model(values.reshape(1, *x.shape[1:]), given[None]).activations[-1]
            return (z if model.sqrt_prior is None else z / model.sqrt_prior).flatten()

        jacobian = torch.autograd.functional.jacobian(noise, image.flatten())
        z = noise(image.flatten()).double()
        prior = -0.5 * (z.square() + torch.log(torch.tensor(2 * torch.pi))).sum()
        expected = prior + torch.linalg.slogdet(jacobian.double()).logabsdet
        assert abs(float((found - expected).detach())) < 1e-4 * abs(float(expected.detach()))


@pytest.mark.parametrize("make", [starflow, tarflow])
def test_sampling_inverts_the_flow(make: Any) -> None:
    model = make()
    x, y = case(model)
    with torch.no_grad():
        z = model(x, y).activations[-1]
        if model.sqrt_prior is not None:
            z = z / model.sqrt_prior
        noise = z if model.channel_first else model(x, y).z
        assert (model.reverse(noise, y) - x).abs().max() < 1e-4


def test_a_coarse_block_reads_a_patch_as_one_token() -> None:
    """The deep block of 8 x 4 patches has two tokens, left and right, of which the second depends on the first alone."""
    model = starflow()
    assert [block.token_dim for block in model.block_configs] == [8, 16, 64]
    x, y = case(model, 1)
    deep = len(model.blocks) - 1

    def log_scale(values: Tensor) -> Tensor:
        return model(values, y).log_dets[deep]

    before = model(x, y).activations[deep]
    assert log_scale(x).shape == (1, 2, 64)
    image = model._image(before, 8, 8)
    own = model._own_tokens(before, model.block_configs[deep], 8, 8)
    # Row, column, channel inside the patch, channel fastest.
    torch.testing.assert_close(own[0, 0], image[0, :, :, :4].permute(1, 2, 0).flatten())
    torch.testing.assert_close(own[0, 1], image[0, :, :, 4:].permute(1, 2, 0).flatten())
    torch.testing.assert_close(model._tokens(own, model.block_configs[deep], 8, 8), before)


def test_equal_patches_are_the_model_without_the_option() -> None:
    plain, named = starflow(block_patch_sizes=None), starflow(block_patch_sizes=(2, 2, 2))
    named.load_state_dict(plain.state_dict())
    x, y = case(plain)
    assert torch.equal(plain(x, y).z, named(x, y).z)
    assert torch.equal(plain.log_likelihood(x, y), named.log_likelihood(x, y))


def test_positions_count_own_tokens_at_the_training_size() -> None:
    """A block's rows and columns are 0, 1, 2, ... whatever its patches are; other shapes are scaled as ever."""
    model = starflow()
    for block, (rows, columns) in zip(model.block_configs, [(4, 4), (4, 2), (1, 2)], strict=True):
        angles = model.rotation(block, rows, columns, 0)
        assert angles is not None
        table = angles.reshape(rows, columns, -1)
        torch.testing.assert_close(table[:, 0, 0], torch.arange(rows) * 1.0)
        torch.testing.assert_close(table[0, :, 4], torch.arange(columns) * 1.0)  # the first angle of columns


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ((2, 2), "block_patch_sizes has 2 entries for num_blocks 3"),
        ((2, 2, 3), "img_size 8 does not consist of 3x3"),
        ((2, 2, (2, 3)), "img_size 8 does not consist of 2x3"),
        ((2, 2, (2, 2, 2)), "block_patch_sizes"),
        ((2, 2, 0), "block_patch_sizes"),
    ],
)
def test_patches_that_do_not_fit(patches: Any, message: str) -> None:
    options = class_config().model.model_dump() | {"num_blocks": 3, "layers_per_block": 1}
    with pytest.raises(ValidationError, match=message):
        StarflowConfig(**options | {"block_patch_sizes": patches})


def test_data_consist_of_whole_patches_of_every_block() -> None:
    model = starflow()
    with pytest.raises(UsageError, match="give H as a multiple of 8 and W of 4"):
        model(torch.zeros(1, 2, 12, 8), torch.zeros(1, 1, 11))
    assert model.config.grid((1, 2, 8, 12)) == (4, 6)
