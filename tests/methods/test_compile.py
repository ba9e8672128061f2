"""``train.compile``: every network that learns runs compiled, not only those that training happens to call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from facezoo.core.run import train
from facezoo.core.run import training_class as usual_class
from facezoo.methods.attributed import training as attributed_training
from facezoo.methods.ifadit import training as ifadit_training
from tests.labelled import FewConvolutions, write_recipe
from tests.methods import test_ifadit, test_mfm, test_sdn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sdn, the paper's way": ("sdn", test_sdn.PAPER_WAY),
    "sdn, our way": ("sdn", test_sdn.OUR_WAY),
    "mfm, the paper's way": ("mfm", test_mfm.PAPER_WAY),
    "mfm, our way": ("mfm", test_mfm.OUR_WAY),
    "ifadit": ("ifadit", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_learns_runs_compiled(case, tmp_path, monkeypatch):
    """Compiled here means: through what ``torch.compile`` gave back, which is watched and compiles nothing.

    iFADIT's generator is frozen, and it is most of the cost: it counts too.
    """
    method, config = CASES[case]
    ran: set[int] = set()

    def watched(call: Any, **_settings: Any) -> Any:
        module = call.__self__

        def run(*args: Any, **kwargs: Any) -> Any:
            ran.add(id(module))
            return call(*args, **kwargs)

        return run

    modules: list[nn.Module] = []

    def kept(name: str) -> Any:
        cls = usual_class(name)

        def make(*args: Any, **kwargs: Any) -> Any:
            modules.append(cls(*args, **kwargs))
            return modules[-1]

        return make

    monkeypatch.setattr(torch, "compile", watched)
    monkeypatch.setattr("facezoo.core.run.training_class", kept)
    monkeypatch.setattr(attributed_training, "load_recogniser", lambda name: FewConvolutions())
    monkeypatch.setattr(ifadit_training, "load_recogniser", lambda name: test_ifadit.FewConvolutions())
    recipe = test_ifadit.recipe_of(tmp_path) if method == "ifadit" else write_recipe(tmp_path, method, config)
    train(recipe, output=tmp_path / "run", overrides=["train.compile=true"], accelerator="cpu")
    (module,) = modules
    learning = {"generator", *(name for phase in module.phases for name in phase.train)}
    for name, network in module.networks().items():
        if name in learning and any(True for _ in network.parameters()):
            assert any(id(part) in ran for part in network.modules()), f"{name} never ran compiled"
