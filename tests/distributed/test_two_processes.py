"""Two processes with half the batch compute what one computes with the whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from facezoo.data.packed import rewrite_packed
from facezoo.methods.dp_kanonymity.training import DPKAnonymityTraining
from facezoo.methods.identity_rotation.training import IdentityRotationTraining
from facezoo.methods.ifadit.training import IFaditTraining
from tests.core.toy import make_set
from tests.methods.test_dp_kanonymity import TINY as DPK_TINY
from tests.methods.test_identity_rotation import TINY
from tests.methods.test_ifadit import TINY as IFADIT_TINY

_SCRIPT = """
import sys
from facezoo.core.run import train
recipe, output, devices, batch = sys.argv[1:]
train(recipe, output=output, accelerator="cpu", devices=int(devices), overrides=[f"train.batch_size={batch}"])
"""


PATIENCE = float(os.environ.get("FACEZOO_TEST_PATIENCE", "1"))
"""Factor of all time limits, for machines that are busy with other things."""

METHODS = {
    "identity_rotation": (
        IdentityRotationTraining,
        TINY
        | {
            "disentangle_batches": 3,
            "conceal_batches": 2,
            "adversarial_start": 0,
            "jpeg_share": 0.0,
            "learning_rate": 0.0001,
        },
    ),
    "ifadit": (
        IFaditTraining,
        IFADIT_TINY | {"disentangle_batches": 3, "transform_batches": 2, "learning_rate": 0.0001},
    ),
    "dp_kanonymity": (
        DPKAnonymityTraining,
        DPK_TINY | {"classify_batches": 2, "edit_batches": 3, "discriminator_batches": 1, "learning_rate": 0.0001},
    ),
}


@pytest.mark.ddp
@pytest.mark.parametrize("name", METHODS)
def test_same_as_one_process(name: str, tmp_path: Path, repository: Path):
    training, config = METHODS[name]
    data = make_set(tmp_path / "set.safetensors", count=9, size=config["size"], dim=128)
    fields = training(config, seed=0).data_fields
    # Labels that are not all known: how many differs between the two halves of a batch.
    labels = {name: np.array([0, 1, -1, 30, -1, 1, 0, 50, 1], np.int16) for name in fields if name[:9] != "embedding"}
    if labels:
        rewrite_packed(data, data, arrays=labels, overwrite=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": f"{name}.tiny",
                "method": name,
                "summary": "a test",
                "data": [str(data)],
                "train": {"log_every_batches": 1, "sheet_every_batches": 100, "tick_batches": 2},
                "config": config,
            }
        )
    )
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for devices, batch in ((1, 4), (2, 2)):
        command = [sys.executable, str(script), str(recipe), str(tmp_path / f"run{devices}"), str(devices), str(batch)]
        environment = {
            "PATH": "/usr/bin:/bin",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(repository),
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240 * PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"run{n}" / "last.ckpt", weights_only=True) for n in (1, 2))
    assert two["facezoo"] == one["facezoo"] == {"batches_seen": 5}
    method = training(config, seed=0)
    start = method.state_dict()
    apart = {}
    for network in sorted({name for phase in method.phases for name in phase.train}):
        names = [
            n for n in start if n.startswith((f"model.{network}.", f"{network}.")) and start[n].is_floating_point()
        ]
        weights = [
            torch.cat([s[n].float().flatten() for n in names]) for s in (start, *(r["state_dict"] for r in (one, two)))
        ]
        moved = (weights[1] - weights[0]).norm()
        assert moved > 0, f"{network} did not learn"
        apart[network] = float((weights[2] - weights[1]).norm() / moved)
    # Adam turns rounding in a gradient that is zero (a bias before a normalisation) into a whole step: 15 % of the
    # way was measured. Gradients that were not averaged make the difference about as large as the way itself.
    assert max(apart.values()) < 0.3, apart
