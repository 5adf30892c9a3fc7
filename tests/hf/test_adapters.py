"""LoRA on int8 linears, through PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import int8conv.hf
from int8conv.errors import UnsupportedFeatureError
from int8conv.hf.linear import int8_linears

from .models import load, logits, token_ids

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out"),
]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_trains_reloads_and_merges_into_the_dequantized_model(
    name: str, family: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, ids = family(name), token_ids(4, 12)
    settings = peft.LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(5)
    model = peft.get_peft_model(load(folder), settings)
    int8conv.hf.set_mode(model, "w8a16")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora" in name}
    dense = peft.get_peft_model(load(folder).dequantize(dtype=torch.float32), settings)
    dense.load_state_dict(state, strict=False)
    for each in (model, dense):
        each(ids, labels=ids).loss.backward()
    gradients = [
        {n: p.grad for n, p in m.named_parameters() if "lora" in n} for m in (model, dense)
    ]
    assert len(gradients[0]) == 2 * len(int8_linears(model)) == len(gradients[1])
    for parameter, grad in gradients[0].items():
        assert grad is not None
        assert (grad - gradients[1][parameter]).abs().max() <= 1e-4 * max(1, grad.abs().max())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    trained = logits(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter")
    int8conv.hf.set_mode(again, "w8a16")
    assert torch.equal(logits(again, ids), trained)
    with pytest.raises(
        UnsupportedFeatureError, match=r"cannot be merged into int8 weights.*dequantize"
    ):
        again.merge_and_unload()
    merged = peft.PeftModel.from_pretrained(
        load(folder).dequantize(dtype=torch.float32), tmp_path / "adapter"
    ).merge_and_unload()
    torch.testing.assert_close(logits(merged, ids), trained, rtol=1e-3, atol=1e-3)
