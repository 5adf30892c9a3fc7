"""Run models: map a converted folder, build the decoder, generate, predict the footprint.

``models`` and the footprint work on headers alone and need no torch.
"""
