"""Which input columns keep 16 bits: statistics of activations, and the rules that choose."""
