"""A student's transform and its density, against PyTorch's own sampling, a Jacobian, and a divergence known in closed form."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.config import CheckpointConfig
from starflow.training.families import build_flow
from starflow.training.flow import gaussian_log_density
from starflow.training.layers.tokens import patchify
from starflow.training.students.config import StudentConfig
from starflow.training.students.network import Made, Student
from starflow.training.students.teacher import Teacher
from tests.models import (
    class_config,
    features_config,
    patches_config,
    randomise,
    tarflow_config,
    unconditional_config,
)

CONFIGS: dict[str, Callable[[], CheckpointConfig]] = {
    "class": class_config,
    "reversed": lambda: class_config(seq_order="R2L", num_blocks=2),
    "patches": patches_config,
    "features": features_config,
    "tarflow": tarflow_config,
    "unconditional": unconditional_config,
}
# With and without guidance, which an unconditional model does not take.
WAYS = [(name, weight) for name in CONFIGS for weight in (0.0, 1.5) if name != "unconditional" or not weight]
BATCH = 3


def make(name: str, **changes: int) -> tuple[AutoregressiveFlow, StudentConfig]:
    config = CONFIGS[name]()
    flow = build_flow(config.model)
    assert isinstance(flow, AutoregressiveFlow)
    randomise(flow)
    if flow.sqrt_prior is not None:
        flow.get_buffer("var").uniform_(0.5, 1.5)
    options = {"layers": flow.block_configs[-1].layers, "stages": 1} | changes
    student = StudentConfig(
        model=flow.config,
        conditioning=config.conditioning,
        teacher="0" * 64,
        block=len(flow.blocks) - 1,
        guidance=(0, 3),
        **options,
    )
    return flow, student


def conditions(flow: AutoregressiveFlow) -> tuple[Tensor | None, Tensor | None]:
    """Conditions as the model takes them [B, ...], and the null condition tokens [m, width]."""
    block = flow.block_configs[-1]
    if block.condition == "none":
        return None, None
    if block.condition == "class":
        return torch.arange(BATCH), None
    tokens = getattr(flow.config, "txt_size", 0)
    return torch.randn(BATCH, tokens, block.condition_width), torch.randn(tokens, block.condition_width)


def deep_block(
    flow: AutoregressiveFlow, y: Tensor | None, null: Tensor | None, weight: float, jacobi: Jacobi | None = None
) -> tuple[Tensor, Tensor]:
    """Noise of the deep block and the tokens that PyTorch's sampler makes of it, [B, T, D] in block order."""
    seen: list[Tensor] = []

    def keep(z: Tensor, y: Tensor | None, weights: Tensor) -> Tensor:
        seen.append(z)
        return z

    noise = torch.randn(flow.noise_shape(BATCH))
    given = None if null is None else null[None]
    flow.reverse(noise, y, given, guidance=weight, students={len(flow.blocks) - 1: keep})
    block = flow.block_configs[-1]
    made: list[Tensor] = []
    flow.reverse(noise, y, given, guidance=weight, jacobi=jacobi, sequence=made)
    tokens = flow.own_tokens(patchify(made[0], flow.config.patch_size, channel_first=flow.channel_first), block)
    return seen[0], tokens.flip(1) if block.reversed else tokens


@pytest.mark.parametrize(("name", "weight"), WAYS)
def test_the_teacher_normalises_what_the_sampler_draws(name: str, weight: float) -> None:
    flow, config = make(name)
    y, null = conditions(flow)
    z, x = deep_block(flow, y, null, weight)
    found = Teacher(flow, config.block).normalise(x, y, null, torch.full((BATCH,), weight))
    assert torch.allclose(found.z, z, atol=2e-4)


@pytest.mark.parametrize(("name", "weight"), WAYS)
def test_what_a_shallow_block_makes_has_the_density_of_the_samplers_jacobian(name: str, weight: float) -> None:
    """By central differences of PyTorch's sampler, of one image in a batch of all the ways to disturb its noise."""
    flow, _ = make(name)
    y, null = conditions(flow)
    y, nulls = (None if y is None else y[:1]), (None if null is None else null[None])
    noise, step = torch.randn(flow.noise_shape(1)), 3e-3
    size = noise.numel()
    moved = noise + step * torch.cat([torch.eye(size), -torch.eye(size)]).view(-1, *noise.shape[1:])
    given = None if y is None else y.expand(len(moved), *y.shape[1:])
    x = flow.reverse(moved, given, nulls, guidance=weight)
    columns = (x[:size] - x[size:]).flatten(1) / (2 * step)
    expected = gaussian_log_density(noise) - torch.linalg.slogdet(columns.double())[1]
    made = flow.reverse(noise, y, nulls, guidance=weight)
    block = flow.block_configs[0]
    own = flow.own_tokens(patchify(made, flow.config.patch_size, channel_first=flow.channel_first), block)
    tokens = own.flip(1) if block.reversed else own
    found = Teacher(flow, 0).log_density(tokens, y, null, torch.full((1,), weight))
    constant = 0.5 * size * math.log(2 * math.pi)  # left out by the teacher
    if flow.sqrt_prior is not None:
        constant += float(flow.sqrt_prior.log().sum()) * (size // flow.sqrt_prior.numel())
    assert found.item() - constant == pytest.approx(expected.item(), abs=0.02)


def test_every_image_has_its_own_guidance() -> None:
    flow, config = make("class")
    y, null = conditions(flow)
    _, x = deep_block(flow, y, null, 1.0)
    teacher = Teacher(flow, config.block)
    mixed = teacher.normalise(x, y, null, torch.tensor([0.0, 1.0, 2.0]))
    for image, weight in enumerate((0.0, 1.0, 2.0)):
        alone = teacher.normalise(x, y, null, torch.full((BATCH,), weight))
        assert torch.equal(mixed.z[image], alone.z[image])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_beginner_is_one_pass_of_jacobi_iteration(name: str) -> None:
    flow, config = make(name)
    y, null = conditions(flow)
    student = Student.beginner(config, flow).eval()
    z, x = deep_block(flow, y, null, 0.0, Jacobi(chunk=1000, threshold=0.0, max_iterations=1))
    assert torch.allclose(student(z, y, torch.zeros(BATCH)), x, atol=1e-5)


@pytest.mark.parametrize("name", ["class", "tarflow"])
def test_the_density_is_that_of_the_jacobian(name: str) -> None:
    flow, config = make(name, stages=2)
    y, _ = conditions(flow)
    student = Student.beginner(config, flow).eval()
    one = None if y is None else y[:1]
    z = torch.randn(1, *Teacher(flow, config.block).prior.shape)
    whole = jacobian(lambda z: student(z, one, torch.ones(1)).flatten(), z).flatten(1)
    log_sigma = student.transform(z, one, torch.ones(1)).log_sigma
    assert torch.isclose(torch.linalg.slogdet(whole.double())[1], log_sigma.double().sum(), atol=1e-4)
    width = z.shape[2]
    blocks = whole.view(-1, width, z.shape[1], width).abs().amax((1, 3))
    assert torch.equal(blocks, blocks.tril()), "a token depends on the noise of a later one"


def test_guidance_changes_what_a_student_makes_once_it_has_learned() -> None:
    flow, config = make("class")
    y, _ = conditions(flow)
    student = Student.beginner(config, flow)
    z = torch.randn(BATCH, *Teacher(flow, config.block).prior.shape)
    assert torch.equal(student(z, y, torch.zeros(BATCH)), student(z, y, torch.ones(BATCH)))
    torch.nn.init.normal_(student.get_parameter("embed_guidance.2.weight"))
    assert not torch.allclose(student(z, y, torch.zeros(BATCH)), student(z, y, torch.ones(BATCH)))


def test_a_student_of_another_depth_starts_near_the_identity() -> None:
    flow, config = make("class", layers=1)
    y, _ = conditions(flow)
    z = torch.randn(BATCH, *Teacher(flow, config.block).prior.shape)
    made = Student.beginner(config, flow)(z, y, torch.zeros(BATCH))
    assert (made - z).abs().max() < 0.5


def test_the_prior_of_a_reversed_coarse_block_is_in_its_order() -> None:
    flow, config = make("tarflow")
    block = flow.block_configs[config.block]
    prior = Teacher(flow, config.block).prior
    assert flow.sqrt_prior is not None and block.reversed
    assert torch.equal(prior, flow.sqrt_prior.flip(0))


@pytest.mark.parametrize(("name", "stages"), [("class", 1), ("patches", 1), ("features", 2)])
def test_surprise_is_the_density_of_a_token_given_the_noise_before_it(name: str, stages: int) -> None:
    """Noise of zero and of one in a token's place give the mean and the scale of its normal distribution."""
    flow, config = make(name, stages=stages)
    student = Student.beginner(config, flow).eval()
    y, _ = conditions(flow)
    noise = torch.randn(BATCH, *Teacher(flow, config.block).prior.shape)
    tokens, weights = torch.randn_like(noise), torch.tensor([0.0, 1.0, 2.5])
    with torch.no_grad():
        made = student.transform(noise, y, weights)
        surprise = made.surprise(noise, tokens)
        for token in (0, 1, noise.shape[1] - 1):
            places = []
            for value in (0.0, 1.0):
                changed = noise.clone()
                changed[:, token] = value
                places.append(student(changed, y, weights)[:, token])
            mean, scale = places[0], places[1] - places[0]
            expected = -torch.distributions.Normal(mean, scale).log_prob(tokens[:, token]) - 0.5 * math.log(2 * math.pi)
            torch.testing.assert_close(surprise[:, token], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_copy_that_reads_tokens_is_aligned_with_its_teacher(name: str) -> None:
    flow, config = make(name)
    y, _ = conditions(flow)
    student, teacher = Student.beginner(config, flow), Teacher(flow, config.block)
    tokens, noise = torch.randn(2, BATCH, *teacher.prior.shape).unbind()
    states = teacher.states(tokens, y)
    assert len(states) == config.layers and states[0].shape[:2] == tokens.shape[:2]
    weights = torch.zeros(BATCH)
    assert student.transform(tokens, y, weights).misalignment(states) < 1e-9
    if config.layers > 1:
        assert student.transform(noise, y, weights).misalignment(states) > 0.01


def test_misalignment_is_relative_and_leaves_the_last_layer_out() -> None:
    teacher = [torch.full((2, 3, 4), value) for value in (1.0, 2.0, 3.0, 4.0)]
    tokens = torch.zeros(2, 3, 1)

    def distance(*states: float) -> float:
        made = Made(tokens, tokens, tuple(torch.full((2, 3, 4), value) for value in states))
        return made.misalignment(teacher).item()

    assert distance(1.0, 2.0, 3.0, 100.0) == 0
    assert distance(2.0, 2.0, 3.0, 4.0) == pytest.approx(1 / 3)
    assert distance(2.0, 0.0) == 0  # half as deep: its first layer is as far as the teacher's second
    assert distance(1.0, 0.0) == pytest.approx((1 / 2) ** 2)
    assert distance(5.0) == 0


def test_a_teachers_states_are_those_its_tokens_come_from() -> None:
    flow, config = make("features")
    y, null = conditions(flow)
    teacher, block = Teacher(flow, config.block), flow.blocks[config.block]
    assert isinstance(block, FlowBlock)
    tokens = torch.randn(BATCH, *teacher.prior.shape)
    raw = block.raw(teacher.states(tokens, y)[-1])
    expected = teacher.normalise(tokens, y, null, torch.zeros(BATCH)).raw[:BATCH]  # of twice as many rows
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-5)
