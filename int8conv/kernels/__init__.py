"""Mixed-precision linears: one interface, several implementations. Knows tensors but not files.

``dispatch`` multiplies by an int8 weight with row scales and 16-bit outlier columns, or by a plain one, and chooses the
implementation by ``crossovers``; ``reference`` is the formula, ``cpu`` and ``gpu`` are the fast paths.
"""
