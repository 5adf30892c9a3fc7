"""The decoder: embedding, layers of attention and FFN, cache."""
