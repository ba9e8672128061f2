"""SDN and MfM in two processes with half the batch: what one computes with the whole, on both sides."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from facezoo.methods.mfm.training import MfMTraining
from facezoo.methods.sdn.training import SDNTraining
from tests.distributed.test_two_processes import _SCRIPT
from tests.labelled import write_recipe
from tests.methods.test_mfm import PAPER_WAY as MFM
from tests.methods.test_sdn import PAPER_WAY as SDN

CASES = {
    "sdn": (SDNTraining, {**SDN, "alternate_batches": 3, "learning_rate": 0.0001, "extractor_learning_rate": 0.0001}),
    "mfm": (MfMTraining, {**MFM, "discriminator_ratio": 2, "modify_batches": 3, "learning_rate": 0.0001}),
}
"""The papers' way: the learned extractor's features, and the bank that is mixed from people of both processes."""


@pytest.mark.ddp
@pytest.mark.parametrize("name", CASES)
def test_same_as_one_process(name: str, tmp_path: Path, repository: Path):
    training, config = CASES[name]
    recipe = write_recipe(tmp_path, name, config)
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {"PATH": "/usr/bin:/bin", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    for devices, batch in ((1, 20), (2, 10)):
        command = [sys.executable, str(script), str(recipe), str(tmp_path / f"run{devices}"), str(devices), str(batch)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"run{n}" / "last.ckpt", weights_only=True) for n in (1, 2))
    assert two["facezoo"] == one["facezoo"]
    module = training(config, seed=0)
    start = module.state_dict()
    bank = "model.source_bank.entries"
    assert one["state_dict"][bank].abs().max() > 0
    assert torch.allclose(one["state_dict"][bank], two["state_dict"][bank], atol=0.05), "mixed from all processes"
    apart = {}
    for network in module.networks():
        names = [
            n
            for n in start
            if n.startswith((f"model.{network}.", f"{network}."))
            and n.endswith("weight")
            and start[n].is_floating_point()
        ]
        if not names:
            continue
        weights = [
            torch.cat([s[n].float().flatten() for n in names]) for s in (start, *(r["state_dict"] for r in (one, two)))
        ]
        moved = (weights[1] - weights[0]).norm()
        assert moved > 0, f"{network} did not learn"
        apart[network] = float((weights[2] - weights[1]).norm() / moved)
    # Adam turns rounding in a gradient that is nearly zero into a whole step; gradients that were not averaged make the
    # difference about as large as the way itself.
    assert max(apart.values()) < 0.3, apart
    log = json.loads((tmp_path / "run2" / "recipe.json").read_text())
    assert log["method"] == name
