"""Source checkpoints: which files hold their tensors, and how their numbers are read."""
