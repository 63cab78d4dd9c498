"""Denoising: from samples of the noised data, on which a flow is trained, back towards the data.

A flow trained on x + sigma n, n ~ N(0, I), samples noised images. *Score* denoising asks the flow itself (Tweedie's
formula; TARFlow, section 2.4): one pass forward and one backward through it. *Learned* denoising asks a network trained
beside the flow (`learnable_self_denoiser` of STARFlow): one pass forward through eight layers.
"""

import torch
from torch import Tensor

from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.starflow import Starflow

LEARNED_STD = 0.3  # the published constant; a denoiser is trained for it whatever the flow's noise_std


def score(model: AutoregressiveFlow, x: Tensor, y: Tensor | None = None) -> Tensor:
    """grad log p(x | y), shaped as x, in nats per unit of x, of the published loss's likelihood: without a learned prior.

    Args:
        x: [B, C, H, W] float32.
        y: Condition of every sample, see `AutoregressiveFlow.forward`. There is no guidance: it has no likelihood.
    """

    def log_likelihood(x: Tensor) -> Tensor:
        # The loss is a mean over all values of the batch; the gradient of their sum is each sample's own.
        return -x.numel() * model(x, y).loss

    with torch.no_grad():  # of the weights; `grad` differentiates x all the same
        gradient: Tensor = torch.func.grad(log_likelihood)(x)
    return gradient


def score_denoise(
    model: AutoregressiveFlow, x: Tensor, y: Tensor | None = None, *, noise_std: float, rate: float = 1.0
) -> Tensor:
    """x + rate sigma^2 grad log p(x | y): the mean of the clean data given x, at rate 1 (Tweedie's formula).

    Args:
        model: See `score`, with `x` and `y`.
        noise_std: sigma, the standard deviation of the noise the flow was trained with.
        rate: Part of the way to go (`self_denoising_lr` of the published code).
    """
    return x + rate * noise_std**2 * score(model, x, y)


@torch.no_grad()
def learned_denoise(
    model: Starflow, x: Tensor, y: Tensor | None = None, *, noise_std: float, target_std: float = 0.0
) -> Tensor:
    """x - prediction * 0.3 (sigma - sigma') / sigma.

    Args:
        x: [B, C, H, W] float32.
        y: Text features of every sample, for a denoiser that reads them.
        noise_std: sigma, of the noise in x.
        target_std: sigma', of the noise to leave.

    Raises:
        UsageError: the model has no denoiser, or x or y do not fit it.
    """
    return x - model.denoiser_prediction(x, y) * (LEARNED_STD * (noise_std - target_std) / noise_std)
