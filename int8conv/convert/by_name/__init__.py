"""What becomes int8 in a family that the runtime does not know: decided by names and shapes."""
