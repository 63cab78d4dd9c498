"""Commands that make checkpoints: one module each, found by `starflow.runtime.command_line`."""
