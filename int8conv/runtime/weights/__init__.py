"""The decoder's weights: from mapped files, from tensors, or one layer at a time."""
