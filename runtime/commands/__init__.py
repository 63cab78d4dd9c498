"""Commands that need a bundle and the base install: one module each, found by `starflow.runtime.command_line`."""
