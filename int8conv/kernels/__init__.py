"""Mixed-precision linears: one interface, several implementations. Knows tensors, no files.

``dispatch`` multiplies with an int8 weight that has row scales and 16-bit outlier columns, or with a plain one, and chooses how by
``crossovers``; ``reference`` is the formula, ``cpu`` and ``gpu`` are the fast paths.
"""
