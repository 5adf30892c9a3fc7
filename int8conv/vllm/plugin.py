"""The entry point of vLLM's plugins."""


def register() -> None:
    """Register the quantization with vLLM; called by vLLM in each of its processes."""
    from . import config  # noqa: F401  # importing it registers it
