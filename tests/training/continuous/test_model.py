"""Velocity networks: the documented forward pass, guidance, and what is refused."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.config import ContinuousMlpConfig, ContinuousTransformerConfig
from starflow.training.continuous.mlp import ContinuousMlp
from starflow.training.continuous.model import ContinuousFlow, time_features
from starflow.training.continuous.transformer import ContinuousTransformer
from starflow.training.families import build_flow

SIZES: dict[str, Any] = {"in_channels": 2, "img_size": 8, "patch_size": 2, "channels": 64, "layers": 2, "head_dim": 32}
MODELS: dict[str, ContinuousTransformerConfig | ContinuousMlpConfig] = {
    "class": ContinuousTransformerConfig(**SIZES, num_classes=5),
    "text": ContinuousTransformerConfig(**SIZES, txt_size=3, txt_dim=7),
    "plain": ContinuousTransformerConfig(**SIZES),
    "mlp": ContinuousMlpConfig(dimensions=2, channels=16, layers=2),
}


def random_network(name: str) -> ContinuousFlow:
    torch.manual_seed(0)
    network = build_flow(MODELS[name])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=1 / (parameter.shape[-1] if parameter.ndim > 1 else 16) ** 0.5)
    return network.eval()


def condition(name: str, batch: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    if name == "class":
        return torch.randint(0, 6, (batch,), generator=generator)
    return torch.randn(batch, 3, 7, generator=generator) if name == "text" else None


def inputs(name: str, batch: int = 3) -> tuple[ContinuousFlow, Tensor, Tensor, Tensor | None]:
    network, generator = random_network(name), torch.Generator().manual_seed(2)
    x = torch.randn(network.noise_shape(batch), generator=generator)
    return network, x, torch.rand(batch, generator=generator), condition(name, batch)


# The forward pass once more, from the modules' docstrings alone, in float64.


def linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def embedded_time(p: dict[str, Tensor], t: Tensor) -> Tensor:
    frequencies = torch.tensor([100 ** (k / 31) for k in range(32)], dtype=torch.float64)
    angles = t.double()[:, None] * frequencies
    features = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
    return linear(p, "time_embed.2", silu(linear(p, "time_embed.0", features)))


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (1 + weight)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """[B, heads, S, head_dim] by [S, head_dim / 2]: each pair of neighbours as a complex number."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def angles_of(rows: int, columns: int, prefix: int, side: int, head_dim: int, text: bool) -> Tensor:
    third = 8 if text else 0
    each = (head_dim // 2 - third) // 2

    def spun(position: float, count: int) -> list[float]:
        return [position * 10000 ** (-k / count) for k in range(count)]

    table = [[0.0] * (2 * each) + spun(j / prefix * side, third) for j in range(prefix)]
    scale = side / math.sqrt(rows * columns)
    for row in range(rows):
        table += [spun(row * scale, each) + spun(column * scale, each) + [0.0] * third for column in range(columns)]
    return torch.tensor(table, dtype=torch.float64)


def documented_transformer(network: ContinuousTransformer, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    config = network.config
    p = {name: value.double() for name, value in network.state_dict().items()}
    patch, (batch, channels, height, width) = config.patch_size, x.shape
    rows, columns = height // patch, width // patch
    tokens = torch.stack(
        [
            x.double()[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].permute(0, 2, 3, 1).flatten(1)
            for r in range(rows)
            for c in range(columns)
        ],
        dim=1,
    )
    e, h, prefix = embedded_time(p, t), linear(p, "proj_in", tokens), 0
    if config.num_classes and y is not None:
        e = e + p["class_embed"][y]
    elif y is not None:
        text = linear(p, "proj_txt", y.double())
        e, h, prefix = e + text.mean(1), torch.cat([text, h], 1), y.shape[1]
    c = silu(e)
    size, heads = config.head_dim, config.channels // config.head_dim
    angles = angles_of(rows, columns, prefix, config.img_size // patch, size, config.txt_size > 0)
    for index in range(config.layers):
        name = f"layers.{index}"
        k1, b1, g1, k2, b2, g2 = linear(p, f"{name}.modulation", c)[:, None].chunk(6, -1)
        u = rms(h, p[f"{name}.attention.norm.weight"]) * (1 + k1) + b1
        q, k, v = (
            part.unflatten(-1, (heads, size)).transpose(1, 2)
            for part in linear(p, f"{name}.attention.qkv", u).chunk(3, -1)
        )
        scores = turned(q, angles) @ turned(k, angles).transpose(-1, -2) / math.sqrt(size)
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
        h = h + g1 * linear(p, f"{name}.attention.proj", mixed)
        u = rms(h, p[f"{name}.mlp.norm.weight"]) * (1 + k2) + b2
        inner = linear(p, f"{name}.mlp.main.0", u)
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        h = h + g2 * linear(p, f"{name}.mlp.main.2", gelu)
    k, b = linear(p, "final_modulation", c)[:, None].chunk(2, -1)
    out = linear(p, "proj_out", rms(h[:, prefix:], p["final_norm.weight"]) * (1 + k) + b)
    image = torch.zeros(batch, channels, height, width, dtype=torch.float64)
    for index in range(rows * columns):
        r, s = divmod(index, columns)
        tile = out[:, index].reshape(batch, patch, patch, channels).permute(0, 3, 1, 2)
        image[:, :, r * patch : (r + 1) * patch, s * patch : (s + 1) * patch] = tile
    return image


def documented_mlp(network: ContinuousMlp, x: Tensor, t: Tensor) -> Tensor:
    p = {name: value.double() for name, value in network.state_dict().items()}
    h = silu(linear(p, "proj_in", x.double()) + embedded_time(p, t))
    for index in range(network.config.layers):
        h = silu(linear(p, f"layers.{index}", h))
    return linear(p, "proj_out", h)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_forward_is_the_documented_one(name: str) -> None:
    network, x, t, y = inputs(name)
    found = network(x, t, y)
    if isinstance(network, ContinuousTransformer):
        expected = documented_transformer(network, x, t, y)
    else:
        assert isinstance(network, ContinuousMlp)
        expected = documented_mlp(network, x, t)
    assert found.dtype == torch.float32
    assert expected.std() > 0.05
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_images_of_another_size_keep_the_extent_of_positions() -> None:
    network = random_network("class")
    assert isinstance(network, ContinuousTransformer)
    x, t, y = torch.randn(2, 2, 4, 12), torch.tensor([0.1, 0.9]), torch.tensor([0, 5])
    torch.testing.assert_close(
        network(x, t, y).double(), documented_transformer(network, x, t, y), rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    network, x, t, y = inputs(name, batch=8)
    network(x, t, y).square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, label


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_samples_of_a_batch_are_independent(name: str) -> None:
    network, x, t, y = inputs(name)
    alone = network(x[1:2], t[1:2], None if y is None else y[1:2])
    torch.testing.assert_close(network(x, t, y)[1:2], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_runs_both_ways() -> None:
    network, x, t, y = inputs("class")
    changed = x.clone()
    changed[:, :, -2:, -2:] += 1  # the last token
    first, last = ((network(changed, t, y) - network(x, t, y)).abs()[:, :, at, at] for at in (0, -1))
    assert first.min() > 1e-4 and last.min() > 1e-4
    back = x.clone()
    back[:, :, :2, :2] += 1
    assert (network(back, t, y) - network(x, t, y)).abs()[:, :, -1, -1].min() > 1e-4


@torch.no_grad()
def test_an_untrained_transformer_stands_still_and_its_layers_do_nothing() -> None:
    network = ContinuousTransformer(ContinuousTransformerConfig(**SIZES, num_classes=5))
    x, t, y = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])
    assert torch.equal(network(x, t, y), torch.zeros_like(x))
    h, c = torch.randn(2, 16, 64), torch.randn(2, 64)
    rotation = (torch.ones(16, 16), torch.zeros(16, 16))
    assert torch.equal(network.layers[0](h, c, rotation), h)


@pytest.mark.parametrize("name", ["class", "text"])
@torch.no_grad()
def test_guidance_extrapolates_from_the_null_condition(name: str) -> None:
    network, x, t, y = inputs(name)
    assert y is not None
    null = torch.tensor([5]) if name == "class" else torch.zeros(1, 3, 7)
    v_c, v_u = network(x, t, y), network(x, t, null.expand_as(y))
    torch.testing.assert_close(network.guided(x, t, y, null, 1.5), v_c + 1.5 * (v_c - v_u), rtol=1e-4, atol=1e-5)
    assert torch.equal(network.guided(x, t, y, null, 0.0), v_c)
    with pytest.raises(UsageError, match="needs a condition and y_null"):
        network.guided(x, t, y, None, 1.5)


@torch.no_grad()
def test_labels_are_sampled_against_the_null_class() -> None:
    network, x, _, _ = inputs("class")
    labels = torch.tensor([0, 1, 2])
    expected = network.reverse(x, labels, torch.tensor([5, 5, 5]), guidance=2.0)
    assert torch.equal(network.sample_labels(x, labels, 2.0), expected)


def test_time_features_are_the_closed_form() -> None:
    features = time_features(torch.tensor([0.0, 0.25, 1.0]))
    assert features.shape == (3, 64)
    assert features[0].tolist() == [1.0] * 32 + [0.0] * 32
    for row, t in ((1, 0.25), (2, 1.0)):
        for k in (0, 7, 31):
            assert features[row, k].item() == pytest.approx(math.cos(t * 100 ** (k / 31)), abs=1e-5)
            assert features[row, 32 + k].item() == pytest.approx(math.sin(t * 100 ** (k / 31)), abs=1e-5)


class Oscillator(ContinuousFlow):
    """dx/dt = t x: x(1) = e^(1/2) x(0)."""

    num_classes = 0

    def noise_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return (batch, 1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return x * t[:, None]


def test_reverse_integrates_at_second_order() -> None:
    x = torch.tensor([[1.0]], dtype=torch.float64)
    errors = [abs(float(Oscillator().reverse(x, steps=n)) - math.exp(0.5)) for n in (5, 10, 20)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("name", "shape", "y", "expected"),
    [
        ("class", (2, 3, 8, 8), torch.tensor([0, 1]), r"does not fit \[B, 2, H, W\]"),
        ("class", (2, 2, 7, 8), torch.tensor([0, 1]), "multiples of patch_size 2"),
        ("class", (2, 2, 8, 8), None, r"condition none: this model takes class ids \[2\] up to 5"),
        ("class", (2, 2, 8, 8), torch.tensor([0]), r"takes class ids \[2\]"),
        ("text", (2, 2, 8, 8), torch.zeros(2, 3, 6), r"takes \[2, tokens, 7\]"),
        ("plain", (2, 2, 8, 8), torch.tensor([0, 1]), "takes none"),
        ("mlp", (2, 3), None, r"does not fit \[B, 2\]"),
        ("mlp", (2, 2), torch.tensor([0, 1]), "unconditional"),
    ],
)
def test_inputs_that_do_not_fit(name: str, shape: tuple[int, ...], y: Tensor | None, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        random_network(name)(torch.zeros(shape), torch.zeros(2), y)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"patch_size": 3}, "img_size 8 is not a multiple of patch_size 3"),
        ({"head_dim": 48}, "channels 64 is not a multiple of head_dim 48"),
        ({"head_dim": 2}, "head_dim: found 2, expected a multiple of 4"),
        ({"head_dim": 8, "txt_size": 3, "txt_dim": 7}, "expected a multiple of 4, at least 16"),
        ({"txt_size": 3}, "txt_size and txt_dim belong together"),
        ({"txt_size": 3, "txt_dim": 7, "num_classes": 2}, "not on both"),
    ],
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        ContinuousTransformerConfig(**SIZES | changes)
