"""Traces: what a bundle computes for given noise, recorded for comparisons."""
