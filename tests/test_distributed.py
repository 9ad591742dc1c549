"""Processes that torchrun starts compute together what one computes alone."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgestitch.artifact import load
from edgestitch.calibrate import Calibration
from edgestitch.distributed import ALONE, Workers, workers
from edgestitch.network import load_network

RECIPE = """
dataset = "toy"
seed = 3

[family]
name = "pair"
input_shape = [1, 8, 8]
num_classes = 4
mean = [0.5]
std = [0.5]

[[family.anchors]]
name = "a"
model = "vit_tiny_patch16_224"
depth = 2
options = { embed_dim = 8, depth = 2, num_heads = 2, patch_size = 4 }

[[family.anchors]]
name = "b"
model = "vit_tiny_patch16_224"
depth = 2
options = { embed_dim = 16, depth = 2, num_heads = 2, patch_size = 4 }

[anchors.a]
epochs = 1
batch_size = 64

[anchors.b]
epochs = 1
batch_size = 64

[initialize]
images = 500

[finetune]
epochs = 1
batch_size = 64
topologies_per_step = 2
clip = 1.0
flip = true
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def calibrate(folder: Path, *launcher: str) -> Path:
    folder.mkdir()
    (folder / "pair.toml").write_text(RECIPE)
    command = [sys.executable, *launcher, "-m", "edgestitch", "calibrate", "pair.toml"]
    command += ["--out", "pair.safetensors", "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote pair.safetensors") == 1
    return folder / "pair.safetensors"


def test_two_processes_give_what_one_gives(tmp_path):
    port = f"--master-port={free_port()}"
    alone = calibrate(tmp_path / "alone")
    together = calibrate(
        tmp_path / "together", "-m", "torch.distributed.run", "--nproc-per-node=2", port
    )
    torch.testing.assert_close(
        load_network(together).state_dict(),
        load_network(alone).state_dict(),
        rtol=1e-3,
        atol=1e-4,
    )
    one, two = (load(Calibration, p.with_suffix(".calibration.json")) for p in (alone, together))
    assert one.recipe == two.recipe
    for a, b in zip(one.steps, two.steps, strict=True):
        assert a.topology == b.topology
        assert a.initialized == pytest.approx(b.initialized, abs=1.0)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [0, 1, 7, 16])
def test_shares_are_the_whole(size, number):
    shares = [Workers(rank, size).share(number) for rank in range(size)]
    assert sorted(index for share in shares for index in share) == list(range(number))


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with workers(torch.device("cpu")) as found:
        assert found is ALONE
        tensor = torch.ones(3)
        found.add([tensor])
        found.wait()
    assert tensor.tolist() == [1, 1, 1]
