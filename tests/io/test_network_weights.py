"""Weights of others: tensors are read, code never is."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptnet.io.network_weights import CONVERT, read_weights


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    path = tmp_path / "network.pt"
    torch.jit.script(torch.nn.Linear(2, 1)).save(str(path))
    return path


@pytest.mark.parametrize("inner", [False, True])
def test_tensors_are_read_from_safetensors_and_torch_files(inner, tmp_path):
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors} if inner else tensors, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        assert torch.equal(read_weights(tmp_path / name, "x")["a"], tensors["a"])


def test_torchscript_is_refused_with_a_command_that_converts_it(scripted, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="TorchScript, which holds code"):
        read_weights(scripted, "a network")
    out = tmp_path / "network.safetensors"
    monkeypatch.setattr(sys, "argv", ["-c", str(scripted), str(out)])
    exec(CONVERT, {})
    assert set(read_weights(out, "a network")) == {"weight", "bias"} == set(load_file(out))


def test_what_holds_more_than_tensors_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(path, "a network")
    (tmp_path / "cut.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path / "cut.safetensors", "a network")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_weights(tmp_path / "list.pt", "a network")
    with pytest.raises(ValueError, match="nothing is downloaded"):
        read_weights(tmp_path / "none.pt", "a network")
