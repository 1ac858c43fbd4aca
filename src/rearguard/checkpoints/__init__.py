"""Checkpoints: the content store, the proof that one restores, and the registry."""
