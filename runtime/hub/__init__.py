"""Bundles on the Hugging Face Hub: what `starflow push` writes there. `bundle.hub_snapshot` reads from it."""
