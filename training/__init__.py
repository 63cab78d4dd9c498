"""Models, likelihoods, the trainer, and published checkpoints."""
