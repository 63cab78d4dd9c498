"""Decode plans and integration plans, as files and manifests state them."""
