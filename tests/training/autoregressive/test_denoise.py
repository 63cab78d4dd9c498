"""Denoising against closed forms and against differences of the likelihood."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from starflow.runtime.plain.errors import UsageError
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.autoregressive.denoise import LEARNED_STD, learned_denoise, score, score_denoise
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow
from starflow.training.config import ModelConfig
from starflow.training.families import build_flow
from tests.models import class_config, contextless, features_config, randomise, tarflow_config, unconditional_config

CONFIGS: dict[str, ModelConfig] = {
    "classes": class_config().model,
    "features": features_config().model,
    "unconditional": unconditional_config().model,
    "tarflow": tarflow_config().model,
}


def inputs(model: AutoregressiveFlow, batch: int = 2) -> tuple[Tensor, Tensor | None]:
    """Data, and a condition that differs from row to row."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    x = torch.randn(batch, config.in_channels, config.img_size, config.img_size, generator=generator)
    if isinstance(config, TarflowConfig):
        return x, torch.arange(batch) % config.num_classes
    return x, torch.randn(batch, config.txt_size, config.txt_dim, generator=generator) if config.txt_size else None


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_score_is_the_slope_of_the_likelihood(config: ModelConfig) -> None:
    model = randomise(build_flow(config))
    x, y = inputs(model)
    slopes = score(model, x, y)
    step = 0.02
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        direction = torch.randn(x.shape, generator=generator)
        direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        with torch.no_grad():
            at = {k: model.log_likelihood(x + k * step * direction, y).double() for k in (-2, -1, 1, 2)}
        expected = (at[-2] - 8 * at[-1] + 8 * at[1] - at[2]) / (12 * step)  # exact to the fourth power of the step
        found = (slopes * direction).flatten(1).sum(1).double()
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(slopes.norm()) / slopes.numel() ** 0.5)
    assert float(slopes.abs().max()) > 1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_denoising_a_gaussian_gives_the_posterior_mean(config: ModelConfig) -> None:
    """A flow without context is a Gaussian; of clean data N(m, c^2) plus noise s n, E[clean | x] = (c^2 x + s^2 m) / (c^2 + s^2)."""
    model = contextless(randomise(build_flow(config)))
    x, y = inputs(model)
    dimensions = x[0].numel()
    with torch.no_grad():
        # z = (x - mean) / deviation, each value for itself: read both off two points.
        z = [model(torch.full_like(x, value), y).activations[-1] for value in (0.0, 1.0)]
        image = [model._image(each, x.shape[2], x.shape[3]) for each in z]
        deviation = 1 / (image[1] - image[0])
        mean = -image[0] * deviation
    noise = 0.5 * float(deviation.min())
    clean_variance = deviation.square() - noise**2
    expected = (clean_variance * x + noise**2 * mean) / deviation.square()
    found = score_denoise(model, x, y, noise_std=noise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float((found - x).norm()) > 0.01 * dimensions**0.5
    half = score_denoise(model, x, y, noise_std=noise, rate=0.5)
    torch.testing.assert_close(half, (x + found) / 2, rtol=1e-5, atol=1e-6)


def test_samples_of_a_batch_are_denoised_each_for_itself() -> None:
    model = randomise(build_flow(CONFIGS["classes"]))
    x, y = inputs(model, batch=3)
    assert y is not None
    together = score(model, x, y)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], score(model, x[row : row + 1], y[row : row + 1]))


def test_the_score_costs_the_weights_no_gradient() -> None:
    model = randomise(build_flow(CONFIGS["tarflow"]))
    x, y = inputs(model)
    found = score(model, x, y)
    assert not found.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(score_denoise(model, x, y, noise_std=0.1), x + 0.01 * found)


def denoiser(**changes: Any) -> Starflow:
    """A flow with a learned denoiser that reads text, three tokens of six."""
    options = features_config().model.model_dump() | {"learnable_self_denoiser": True, "conditional_denoiser": True}
    model = randomise(build_flow(StarflowConfig(**options | changes)))
    assert isinstance(model, Starflow)
    return model


@pytest.mark.parametrize("config", [{}, {"top_block_channels": 64}, {"num_blocks": 1, "layers_per_block": (1,)}])
def test_the_denoiser_is_as_wide_as_the_shallow_blocks_and_eight_layers_deep(config: dict[str, Any]) -> None:
    network = denoiser(**config).learnable_self_denoiser
    assert isinstance(network, FlowBlock)
    assert network.proj_in.weight.shape == (32, 4) and network.proj_out.weight.shape == (4, 32)
    assert len(network.attn_blocks) == 8
    assert not hasattr(network, "sos_embed")


@pytest.mark.parametrize("corner", [(0, 0), (7, 7)])
def test_every_token_of_the_denoiser_sees_every_other(corner: tuple[int, int]) -> None:
    model = denoiser()
    x, y = inputs(model)
    moved = x.clone()
    moved[:, :, corner[0], corner[1]] += 1
    with torch.no_grad():
        change = (model.denoiser_prediction(moved, y) - model.denoiser_prediction(x, y)).abs()
    assert (change.amax(1) > 1e-6).all()


@pytest.mark.parametrize("conditional", [False, True])
def test_a_conditional_denoiser_reads_the_text_to_its_end(conditional: bool) -> None:
    model = denoiser(conditional_denoiser=conditional)
    x, y = inputs(model)
    assert y is not None
    other = y.clone()
    other[:, -1] += 1
    with torch.no_grad():
        change = (model.denoiser_prediction(x, other) - model.denoiser_prediction(x, y)).abs()
    assert bool((change > 1e-6).any()) is conditional
    if not conditional:
        with torch.no_grad():
            torch.testing.assert_close(model.denoiser_prediction(x), model.denoiser_prediction(x, y))


def test_learned_denoising_takes_the_part_of_the_noise_that_is_asked_for() -> None:
    model = denoiser()
    x, y = inputs(model)
    with torch.no_grad():
        noise = LEARNED_STD * model.denoiser_prediction(x, y)
    torch.testing.assert_close(learned_denoise(model, x, y, noise_std=0.4), x - noise)
    torch.testing.assert_close(learned_denoise(model, x, y, noise_std=0.4, target_std=0.1), x - 0.75 * noise)
    torch.testing.assert_close(learned_denoise(model, x, y, noise_std=0.4, target_std=0.4), x)


def test_the_denoiser_leaves_the_flow_alone() -> None:
    model = denoiser()
    x, y = inputs(model)
    plain = build_flow(StarflowConfig(**model.config.model_dump() | {"learnable_self_denoiser": False})).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name.startswith("blocks.")})
    with torch.no_grad():
        torch.testing.assert_close(model(x, y).z, plain(x, y).z, rtol=0, atol=0)


def test_what_cannot_be_denoised_is_named() -> None:
    plain = build_flow(CONFIGS["features"])
    assert isinstance(plain, Starflow)
    x, y = inputs(plain)
    with pytest.raises(UsageError, match="has no learned denoiser"):
        learned_denoise(plain, x, y, noise_std=0.3)
    model = denoiser()
    with pytest.raises(UsageError, match=r"condition of shape none: this model takes \[2, tokens, 6\]"):
        learned_denoise(model, x, noise_std=0.3)
    with pytest.raises(UsageError, match="data of shape"):
        learned_denoise(model, x[:, :, :7], y, noise_std=0.3)
    with pytest.raises(ValidationError, match="learnable_self_denoiser needs rope"):
        denoiser(rope=False)
    with pytest.raises(ValidationError, match="conditional_denoiser needs a txt_size"):
        denoiser(txt_size=0, txt_dim=0)
