"""The offline converter: plan, calibrate, stream.

Everything except ``calibrate`` works without torch, so that a plain conversion does not pay for importing it.
"""
