"""The model against mathematics: closed forms, autograd's Jacobian, and its own inverse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from starflow.runtime.plain.bits_per_dim import bits_per_dim
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.config import StarflowConfig, TarflowConfig
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.families import build_flow

STARFLOW: dict[str, Any] = {
    "in_channels": 2,
    "img_size": 4,
    "patch_size": 2,
    "channels": 24,
    "head_dim": 20,
    "num_heads": 2,
}
STARFLOW |= {
    "num_blocks": 2,
    "layers_per_block": (1, 2),
    "rope": True,
    "sos": True,
    "use_softplus": True,
    "soft_clip": 4,
}
TEXT: dict[str, Any] = {"txt_size": 3, "txt_dim": 5, "cond_top_only": True}
TARFLOW: dict[str, Any] = {"in_channels": 2, "img_size": 4, "patch_size": 2, "channels": 16, "head_dim": 8}
TARFLOW |= {"num_blocks": 3, "layers_per_block": 1}

CONFIGS: dict[str, StarflowConfig | TarflowConfig] = {
    "starflow": StarflowConfig(**STARFLOW),
    "starflow-text": StarflowConfig(**STARFLOW | TEXT),
    "starflow-text-everywhere": StarflowConfig(**STARFLOW | TEXT | {"cond_top_only": False, "seq_order": "R2L"}),
    "starflow-exp-shifted": StarflowConfig(
        **STARFLOW | {"sos": False, "use_softplus": False, "soft_clip": 0, "rope": False}
    ),
    "starflow-identity-block": StarflowConfig(**STARFLOW | {"num_blocks": 3, "layers_per_block": (1, 0, 1)}),
    "starflow-every-option": StarflowConfig(
        **STARFLOW
        | TEXT
        | {"num_kv_heads": 1, "use_final_norm": True, "use_swiglu": True, "use_qk_norm": True, "use_post_norm": True}
        | {"use_bias": False, "norm_type": "rms_norm", "hf_style_rope": True, "top_block_channels": 40}
    ),
    "tarflow": TarflowConfig(**TARFLOW),
    "tarflow-class": TarflowConfig(**TARFLOW, num_classes=3),
    "tarflow-learned-prior": TarflowConfig(**TARFLOW, nvp=False),
}


def make_model(config: StarflowConfig | TarflowConfig) -> AutoregressiveFlow:
    """A model in which nothing is trivial."""
    torch.manual_seed(3)
    model = build_flow(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05 if "proj_out" in name else 0.25)  # sigma within reach of float32
    if isinstance(config, TarflowConfig) and not config.nvp:
        model.var.copy_(torch.rand_like(model.var) + 0.5)  # type: ignore[operator, arg-type]
    return model.eval()


def identity_model(config: StarflowConfig | TarflowConfig) -> AutoregressiveFlow:
    """A model whose blocks all have a = 0 and mu = 0."""
    model = build_flow(config).eval()
    for block in model.blocks:
        if isinstance(block, FlowBlock):
            torch.nn.init.zeros_(block.proj_out.bias)
    return model


def condition(config: StarflowConfig | TarflowConfig, batch: int) -> Tensor | None:
    if isinstance(config, TarflowConfig):
        return torch.arange(batch) % config.num_classes if config.num_classes else None
    return torch.randn(batch, config.txt_size, config.txt_dim) if config.txt_size else None


def data(config: StarflowConfig | TarflowConfig, batch: int) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(batch, config.in_channels, config.img_size, config.img_size)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_log_likelihood_is_the_change_of_variables(config: StarflowConfig | TarflowConfig) -> None:
    model = make_model(config)
    x, y = data(config, 2), condition(config, 2)
    expected = []
    for row in range(2):
        one = y if y is None else y[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda x, y=one: model(x, y).z.flatten(), x[row : row + 1])
        _, log_det = torch.linalg.slogdet(jacobian.reshape(x[row].numel(), -1).double())
        with torch.no_grad():
            z = model(x[row : row + 1], one).z.double()
        deviation = torch.ones(()) if model.sqrt_prior is None else model.sqrt_prior
        expected.append(Normal(0.0, deviation.double()).log_prob(z).sum() + log_det)
    with torch.no_grad():
        found = model.log_likelihood(x, y)
    assert found.shape == (2,)
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=2e-4, rtol=1e-5)
    assert (
        config == CONFIGS["tarflow-learned-prior"] or abs(float(found[0] - Normal(0.0, 1.0).log_prob(x[0]).sum())) > 0.1
    )


# The published loss leaves the learned prior out.
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"tarflow-learned-prior"}))
def test_the_loss_is_the_negative_log_likelihood_per_dimension(name: str) -> None:
    config = CONFIGS[name]
    model = make_model(config)
    x, y = data(config, 3), condition(config, 3)
    with torch.no_grad():
        nats = -model.log_likelihood(x, y).mean() / x[0].numel()
        torch.testing.assert_close(model(x, y).loss + 0.5 * math.log(2 * math.pi), nats)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_reverse_inverts_forward(config: StarflowConfig | TarflowConfig) -> None:
    model = make_model(config)
    x, y = data(config, 2), condition(config, 2)
    prior = model.sqrt_prior if model.sqrt_prior is not None else torch.ones(())
    with torch.no_grad():
        z = model(x, y).z
        torch.testing.assert_close(model.reverse(z / prior, y), x, atol=1e-4, rtol=1e-4)
        noise = torch.randn(model.noise_shape(2))
        torch.testing.assert_close(model(model.reverse(noise, y), y).z / prior, noise, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(z.flatten(1), x.flatten(1), atol=0.1)


@pytest.mark.parametrize("name", ["starflow", "starflow-text", "starflow-every-option"])
def test_jacobi_with_as_many_iterations_as_tokens_is_exact(name: str) -> None:
    config = CONFIGS[name]
    model, y = make_model(config), condition(config, 2)
    noise = torch.randn(model.noise_shape(2))
    sequential = model.reverse(noise, y)
    tokens = model.side**2
    found = model.reverse(noise, y, jacobi=Jacobi(chunk=tokens, threshold=0.0, max_iterations=tokens + 1))
    torch.testing.assert_close(found, sequential, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_parameter_learns(config: StarflowConfig | TarflowConfig) -> None:
    model = make_model(config).train()
    x = data(config, 6)
    model(x, condition(config, 6)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["starflow", "starflow-exp-shifted", "tarflow", "tarflow-learned-prior"])
def test_the_identity_flow_scores_a_standard_normal(name: str) -> None:
    """Data of mean square s^2 costs (log(2 pi) / 2 + s^2 / 2 - log(2 / 256)) / log 2 bits a dimension."""
    model = identity_model(CONFIGS[name])
    x = data(CONFIGS[name], 2).sign()
    for s in (0.25, 1.0, 2.0):
        with torch.no_grad():
            bits = bits_per_dim(model.log_likelihood(s * x), x[0].numel())
        closed_form = (0.5 * math.log(2 * math.pi) + s**2 / 2 - math.log(2 / 256)) / math.log(2)
        torch.testing.assert_close(bits, torch.full((2,), closed_form))
    assert torch.equal(model.reverse(torch.zeros(model.noise_shape(1))), torch.zeros(1, *x.shape[1:]))


def test_an_affine_flow_scores_the_normal_it_is() -> None:
    """One block with constant a and mu turns N(0, 1) into N(mu, sigma^2), dimension by dimension."""
    config = StarflowConfig(**STARFLOW | {"num_blocks": 1, "layers_per_block": (1,), "soft_clip": 0})
    model = identity_model(config)
    block = model.blocks[0]
    assert isinstance(block, FlowBlock)
    sigma, mu = 1.7, -0.4
    with torch.no_grad():
        block.proj_out.bias[:8] = math.log(math.expm1(sigma)) - 0.541324854612918  # softplus of it is sigma
        block.proj_out.bias[8:] = mu
        x = data(config, 4)
        expected = Normal(mu, sigma).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(model.log_likelihood(x), expected)


def test_bits_of_uniform_data() -> None:
    """The uniform density on the whole interval costs log2(levels) bits, whatever the interval."""
    for levels, span in ((256, 2.0), (256, 1.0), (32, 2.0)):
        density = torch.full((3,), -12 * math.log(span))
        bits = bits_per_dim(density, 12, levels=levels, span=span)
        torch.testing.assert_close(bits, torch.full((3,), math.log2(levels)))
    # All of the mass on one of the 256 levels costs nothing.
    torch.testing.assert_close(bits_per_dim(torch.tensor([-math.log(2 / 256)]), 1), torch.zeros(1), atol=1e-6, rtol=0)


def test_rows_of_a_batch_do_not_mix() -> None:
    for name in ("starflow-text", "tarflow-class"):
        config = CONFIGS[name]
        model, x, y = make_model(config), data(config, 3), condition(config, 3)
        assert y is not None
        with torch.no_grad():
            together = model.log_likelihood(x, y)
            apart = torch.cat([model.log_likelihood(x[i : i + 1], y[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-5)
        assert len(set(together.tolist())) == 3


def test_conditions_matter_and_the_null_condition_is_none_of_them() -> None:
    model = make_model(CONFIGS["tarflow-class"])
    x = data(CONFIGS["tarflow-class"], 1).expand(4, -1, -1, -1)
    labels = torch.tensor([0, 1, 2, 3])  # 3 is the null class
    with torch.no_grad():
        likelihoods = model.log_likelihood(x, model.encode_labels(labels))
        dropped = model.log_likelihood(x, torch.full((4,), -1))
    assert len(set(likelihoods.tolist())) == 4
    torch.testing.assert_close(likelihoods[3], dropped[3])


def test_class_tokens_are_one_hot() -> None:
    model = make_model(StarflowConfig(**STARFLOW | {"txt_size": 1, "txt_dim": 4}))
    assert torch.equal(model.encode_labels(torch.tensor([2, 3])), torch.tensor([[[0.0, 0, 1, 0]], [[0, 0, 0, 1]]]))
    noise = torch.randn(model.noise_shape(4))
    samples = model.sample_labels(noise, torch.tensor([0, 1, 2, 0]), guidance=1.0)
    assert samples.shape == noise.shape and torch.isfinite(samples).all()
    assert not torch.allclose(samples, model.sample_labels(noise, torch.tensor([1, 2, 0, 1]), guidance=1.0))


def test_guidance_with_the_same_condition_twice_changes_nothing() -> None:
    config = CONFIGS["starflow-text"]
    model, y = make_model(config), condition(config, 2)
    noise = torch.randn(model.noise_shape(2))
    torch.testing.assert_close(model.reverse(noise, y, y, guidance=3.0), model.reverse(noise, y), atol=1e-5, rtol=1e-5)


def test_untrained_models_are_elementwise_affine() -> None:
    torch.manual_seed(1)
    model = build_flow(CONFIGS["starflow"]).eval()
    x = data(CONFIGS["starflow"], 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).z.flatten(), x).reshape(x.numel(), x.numel())
    assert torch.equal(jacobian, jacobian.diagonal().diag())


def test_other_sizes_than_the_training_size() -> None:
    model = make_model(CONFIGS["starflow"])
    x = torch.randn(1, 2, 6, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.reverse(model(x).z), x, atol=1e-4, rtol=1e-4)
    assert model.noise_shape(5, 6, 2) == (5, 2, 6, 2)


def test_parameters_are_counted_once() -> None:
    model = make_model(CONFIGS["tarflow"])
    assert model.parameter_count == sum(value.numel() for name, value in model.state_dict().items() if name != "var")


@pytest.mark.parametrize(
    ("name", "shape", "y", "expected"),
    [
        ("starflow", (1, 3, 4, 4), None, r"data of shape \(1, 3, 4, 4\) does not fit \[B, 2, H, W\].*patch_size 2"),
        ("starflow", (1, 2, 5, 4), None, "multiples of patch_size 2"),
        ("starflow", (2, 4, 4), None, r"data of shape \(2, 4, 4\) does not fit"),
        ("starflow", (1, 2, 4, 4), torch.zeros(1, 3, 5), "unconditional; it takes no condition"),
        ("starflow-text", (1, 2, 4, 4), None, r"condition of shape none: this model takes \[1, tokens, 5\]"),
        ("starflow-text", (1, 2, 4, 4), torch.zeros(1, 3, 6), r"condition of shape \(1, 3, 6\)"),
        ("starflow-text", (2, 2, 4, 4), torch.zeros(1, 3, 5), r"this model takes \[2, tokens, 5\]"),
        ("starflow-text", (1, 2, 4, 4), torch.zeros(1), r"condition of shape \(1,\)"),
        ("tarflow", (1, 2, 6, 6), None, r"data of shape \(1, 2, 6, 6\): this model takes 4 x 4 images only"),
        ("tarflow", (1, 3, 4, 4), None, r"does not fit \[B, 2, H, W\]"),
        ("tarflow", (1, 2, 4, 4), torch.zeros(1, dtype=torch.int64), "this model takes no condition"),
        ("tarflow-class", (1, 2, 4, 4), torch.zeros(1, 3), r"this model takes class ids \[1\] below 3"),
    ],
)
def test_wrong_data_and_conditions_are_named(
    name: str, shape: tuple[int, ...], y: Tensor | None, expected: str
) -> None:
    model = make_model(CONFIGS[name])
    with pytest.raises(UsageError, match=expected) as caught:
        model(torch.zeros(shape), y)
    assert "\n" not in str(caught.value)


def test_wrong_sampling_is_named() -> None:
    tarflow, starflow = make_model(CONFIGS["tarflow"]), make_model(CONFIGS["starflow-text"])
    y = condition(CONFIGS["starflow-text"], 1)
    with pytest.raises(UsageError, match=r"noise of shape \(1, 2, 4, 4\): this model takes \[B, 4, 8\]"):
        tarflow.reverse(torch.zeros(1, 2, 4, 4))
    with pytest.raises(UsageError, match=r"does not fit \[B, 2, H, W\]"):
        starflow.reverse(torch.zeros(1, 4, 8), y)
    with pytest.raises(UsageError, match="guidance needs y_null"):
        starflow.reverse(torch.zeros(1, 2, 4, 4), y, guidance=1.0)
    with pytest.raises(UsageError, match="the other options are TARFlow's"):
        starflow.reverse(torch.zeros(1, 2, 4, 4), y, y, guidance=Guidance(1.0, annealed=True))
