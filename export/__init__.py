"""From checkpoints to bundles and engines, and the check that all of them give the same numbers."""
