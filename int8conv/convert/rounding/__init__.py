"""From numbers to codes: row scales, rounding, 16-bit patterns; on a CPU or a GPU."""
