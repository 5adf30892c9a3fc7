"""The Hugging Face hub: download a checkpoint, or read it remotely by byte ranges."""
