"""What a GPU refuses: by name, when a model is loaded and when its memory is predicted."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import int8conv
from int8conv.cli import main
from int8conv.errors import UnsupportedOnDeviceError
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.device_support import check_device

from ...checkpoints import LLAMA, write_checkpoint
from .test_families import config_of

REFUSED = {
    "qwen3_5_text": "its Gated DeltaNet layers run on a CPU only",
    "granitemoehybrid": "its Mamba 2 layers run on a CPU only",
    "lfm2": "its short convolutions run on a CPU only",
    "deepseek_v3": "its latent attention runs on a CPU only",
    "gpt_oss": "its attention with sinks and experts with limits run on a CPU only",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_gpu_is_refused_by_name(name: str) -> None:
    config = read_architecture(config_of(name).to_dict(), ()).config
    check_device(config, "cpu")
    with pytest.raises(UnsupportedOnDeviceError, match=REFUSED[name]):
        check_device(config, "cuda")


def test_loading_and_the_footprint_agree(tmp_path: Path) -> None:
    weights = pytest.importorskip("int8conv.runtime.backends.gpu.weights")
    source = write_checkpoint(tmp_path / "source", config_of("qwen3_5_text").to_dict())
    model = int8conv.load(source)
    with pytest.raises(UnsupportedOnDeviceError):
        weights.DeviceCheckpoint(model.opened.checkpoint, model.config, None, None)
    for path in (source, source / "config.json"):
        result = CliRunner().invoke(main, ["footprint", str(path), "--device", "cuda"])
        assert result.exit_code == 1
        assert REFUSED["qwen3_5_text"] in result.output
        assert CliRunner().invoke(main, ["footprint", str(path)]).exit_code == 0
    plain = write_checkpoint(tmp_path / "plain", LLAMA)
    assert CliRunner().invoke(main, ["footprint", str(plain), "--device", "cuda"]).exit_code == 0
