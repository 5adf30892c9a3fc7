"""Converted folders in Hugging Face transformers. Importing this registers them:

    import int8conv.hf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("OUT")

Needs the extra ``hf`` (``pip install 'int8conv[hf]'``). What it adds to a model: ``Int8convLinear`` in place of each quantized linear.
"""

from .versions import check_versions

check_versions()  # before what imports transformers

from .adapters import refuse_merging  # noqa: E402
from .config import Int8convConfig  # noqa: E402
from .linear import Int8convLinear, set_mode  # noqa: E402
from .quantize import quantize_model  # noqa: E402
from .quantizer import Int8convQuantizer  # noqa: E402

refuse_merging()

__all__ = ["Int8convConfig", "Int8convLinear", "Int8convQuantizer", "quantize_model", "set_mode"]
