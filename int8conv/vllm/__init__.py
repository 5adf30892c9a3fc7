"""Converted folders in vLLM, which finds ``plugin`` by its entry point: ``vllm serve OUT`` needs nothing else (``docs/vllm.md``)."""
