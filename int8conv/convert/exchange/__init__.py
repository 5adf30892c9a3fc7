"""Checkpoints of other tools, and for them."""
