"""SDN and MfM: gradients of two processes' halves of a batch average to those of the whole, on either side.

What `tests/distributed/test_two_processes_attributed.py` shows with real processes, in a second and for each term.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import nn

from facezoo.core.batches import PackedBatches
from facezoo.methods.attributed import training
from facezoo.methods.mfm.training import MfMTraining
from facezoo.methods.sdn.training import SDNTraining
from tests.labelled import FewConvolutions, labelled_set
from tests.methods.test_mfm import OUR_WAY as MFM_OURS
from tests.methods.test_mfm import PAPER_WAY as MFM
from tests.methods.test_sdn import OUR_WAY as SDN_OURS
from tests.methods.test_sdn import PAPER_WAY as SDN


class Kept:
    """In an optimizer's place: lets the gradients stand."""

    def toggle_model(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def zero_grad(self) -> None: ...

    def step(self) -> None: ...


def gradients(cls: type, config: dict, data: PackedBatches, rank: int, world: int, batches_seen: int) -> torch.Tensor:
    """All gradients after one batch, as rank ``rank`` of ``world`` computes them, before they are averaged."""

    class Part(cls):  # type: ignore[misc, valid-type]
        world_size = property(lambda self: world)
        global_rank = property(lambda self: rank)

    module = Part(config, seed=0)
    module.setup_data(data)
    module.batches_seen = batches_seen
    phase = module.apply_phase()
    module.optimizers_list = lambda: [Kept()] * 4
    module.manual_backward = lambda loss: loss.backward()
    module.clip_gradients = lambda *a, **k: None
    module.refill_bank = lambda *a: None
    batch = data.__getitems__(list(range(12))[rank::world])
    module.step(batch, phase, phase.side(module.locate(batches_seen)[1]))
    rows = []
    for network in module.networks().values():
        for parameter in network.parameters():
            rows.append((torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten())
    return torch.cat(rows)


CASES = {
    "sdn, judges, paper's way": (SDNTraining, SDN, 0),
    "sdn, networks, paper's way": (SDNTraining, SDN, 2),
    "sdn, judges, our way": (SDNTraining, SDN_OURS, 0),
    "sdn, networks, our way": (SDNTraining, SDN_OURS, 1),
    "mfm, classifier": (MfMTraining, MFM, 0),
    "mfm, judges, paper's way": (MfMTraining, MFM, 2),
    "mfm, modifier, paper's way": (MfMTraining, MFM, 6),
    "mfm, modifier, our way": (MfMTraining, MFM_OURS, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_halves_average_to_the_whole(case: str, tmp_path: Path, monkeypatch):
    cls, config, batches_seen = CASES[case]
    monkeypatch.setattr(training, "load_recogniser", lambda name: FewConvolutions())
    # The 1 - SSIM term is a mean over pictures as well; rounding to 8 bits passes gradients unchanged.
    fields = ("embedding_sface",) if config.get("extractor") == "recogniser" else ()
    data = PackedBatches([labelled_set(tmp_path / "set.safetensors")], config["size"], fields)
    whole = gradients(cls, config, data, 0, 1, batches_seen)
    halves = [gradients(cls, config, data, rank, 2, batches_seen) for rank in (0, 1)]
    average = (halves[0] + halves[1]) / 2
    assert whole.norm() > 0
    assert nn.functional.cosine_similarity(average, whole, dim=0) > 0.9999
    assert (average - whole).norm() < 0.01 * whole.norm()
    # And each half alone is something else: the test would notice.
    assert (halves[0] - whole).norm() > 0.05 * whole.norm()
