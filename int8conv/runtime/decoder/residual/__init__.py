"""What is added to the residual stream besides attention and FFN."""
