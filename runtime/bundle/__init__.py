"""The bundle format: manifest, graphs, build records, and how they are read and changed."""

from starflow.runtime.bundle.bundle import Bundle

__all__ = ["Bundle"]
