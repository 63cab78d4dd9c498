"""Captions and the features that text encoders turn them into."""
