"""Converted folders for others: the model card, and the upload to the hub."""
