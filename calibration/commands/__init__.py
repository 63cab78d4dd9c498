"""Commands that tune bundles: one module each, found by `starflow.runtime.command_line`."""
