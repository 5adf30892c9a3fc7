"""What commands do for GPUs alone."""
