"""StyleGAN2 in two processes with half the batch: what one computes with the whole, in every kind of batch."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from facezoo.methods.stylegan2.training import StyleGAN2Training
from tests.core.toy import make_set
from tests.distributed.test_two_processes import _SCRIPT
from tests.methods.test_stylegan2 import TINY


@pytest.mark.ddp
def test_stylegan2(tmp_path: Path, repository: Path):
    """Growing, fading, R1 and path length (each in a batch with and without the other), augmentation at work."""
    data = make_set(tmp_path / "set.safetensors", count=17, size=16)
    config = {**TINY, "growing_batches": [3], "training_batches": 4, "ada_pictures": 30}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "stylegan2.tiny",
                "method": "stylegan2",
                "summary": "a test",
                "data": [str(data)],
                "train": {"log_every_batches": 1, "sheet_every_batches": 100, "tick_batches": 3, "ema_decay": 0.9},
                "config": config,
            }
        )
    )
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {"PATH": "/usr/bin:/bin", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    for devices, batch in ((1, 8), (2, 4)):
        command = [sys.executable, str(script), str(recipe), str(tmp_path / f"run{devices}"), str(devices), str(batch)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"run{n}" / "last.ckpt", weights_only=True) for n in (1, 2))
    assert two["facezoo"] == one["facezoo"] == {"batches_seen": 7}
    start = StyleGAN2Training(config, seed=0).state_dict()
    for name in ("path_mean", "ada.strength", "ada.counted", "generator.w_mean"):
        assert torch.allclose(two["state_dict"][name], one["state_dict"][name], rtol=1e-3, atol=1e-5), name
    with (tmp_path / "run2" / "log.csv").open() as stream:
        strengths = [float(row["grow8/ada"] or row["train/ada"]) for row in csv.DictReader(stream)]
    assert sum(strength > 0 for strength in strengths) >= 2, "the augmentation took part"
    for network in ("generator", "discriminator"):
        names = [n for n, v in start.items() if n.startswith(f"{network}.") and v.is_floating_point()]
        weights = [torch.cat([s[n].flatten() for n in names]) for s in (start, one["state_dict"], two["state_dict"])]
        moved = (weights[1] - weights[0]).norm()
        assert moved > 0
        # 2e-6 of the way was measured; gradients, noise or groups that differ make it about as large as the way itself.
        assert (weights[2] - weights[1]).norm() < 1e-3 * moved, network
