"""What a model is: its config, families, architecture and rotary frequencies. Needs no torch."""
