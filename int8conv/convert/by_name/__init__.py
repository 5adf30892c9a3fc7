"""Chooses what becomes int8 in families unknown to the runtime, by names and shapes."""
