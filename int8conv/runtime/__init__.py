"""Map a converted folder, build the decoder, generate, measure the footprint.

``config``, ``families``, ``architecture`` and ``footprint`` work on headers alone and need no torch.
"""
