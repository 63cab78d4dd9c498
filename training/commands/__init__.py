"""Commands that write checkpoints: one module each, found by `starflow.runtime.command_line`."""
