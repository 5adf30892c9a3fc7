"""The Hugging Face hub: download a checkpoint, or read it there by ranges of bytes."""
