"""Measure and predict: memory, speed, perplexity."""
