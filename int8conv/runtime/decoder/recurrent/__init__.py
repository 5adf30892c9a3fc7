"""Layers with a state of fixed size in place of attention, or beside it."""
