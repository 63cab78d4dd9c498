"""Commands that make bundles: one module each, found by `starflow.runtime.command_line`."""
