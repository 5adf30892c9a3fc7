"""Choose token after token."""
