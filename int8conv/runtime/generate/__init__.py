"""Generate token by token."""
