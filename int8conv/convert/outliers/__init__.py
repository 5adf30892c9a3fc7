"""Which input columns stay in 16 bits: activation statistics, and the rules that choose."""
