"""A source checkpoint: which files hold its tensors, and how their numbers are read."""
