"""Random numbers as a function of their place in a run: a seed, a stream, and an index in it."""

import numpy as np
import torch

ORDER, STEP, EVALUATION, SAMPLES, DROPOUT, VIEWS, POTENTIALS, PREPARATION = range(8)  # streams


def seed_for(seed: int, stream: int, index: int) -> int:
    """The seed of one step, epoch or evaluation, 63 bits."""
    state = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0]
    return int(state) >> 1  # torch takes 63 bits


def generator_for(seed: int, stream: int, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step, epoch or evaluation: a function of its place in the run alone."""
    return torch.Generator(device).manual_seed(seed_for(seed, stream, index))
