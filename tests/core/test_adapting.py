"""Adapting a trained model: layers that stay, phases that end early, runs that older versions began."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from facezoo.core.batches import PackedBatches, as_batch
from facezoo.core.callbacks import EndOfPhases
from facezoo.core.early_stop import EarlyStop
from facezoo.core.ema import NetworkEMA
from facezoo.core.freezing import PRESETS, frozen_parameters
from facezoo.core.preemption import Preemption
from facezoo.core.recipe import Recipe, TrainConfig
from facezoo.core.run import _prepare_folder, train
from facezoo.core.sampler import StepSampler
from facezoo.errors import CheckpointError, InputError
from facezoo.hub.manifest import load_networks, read_manifest
from tests.core.test_run import write_recipe
from tests.core.toy import Toy, make_set

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_set(tmp_path_factory.mktemp("data") / "set.safetensors")


def fit(folder: Path, data: Path, *callbacks: Callback, toy: Toy | None = None, resume: bool = False) -> Toy:
    """Trains the toy with further callbacks, as ``run.train`` orders them."""
    module = toy or Toy()
    batches = PackedBatches([data], 16, ())
    sampler = StepSampler(len(batches), 3, 1, 0, 5, lambda: module.batches_seen)
    trainer = L.Trainer(
        max_epochs=-1,
        limit_train_batches=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, EndOfPhases(), Preemption(folder / "last.ckpt", 1e9, None)],
    )
    loader = DataLoader(batches, batch_sampler=sampler, collate_fn=as_batch)
    trainer.fit(module, loader, ckpt_path=str(folder / "last.ckpt") if resume else None, weights_only=resume or None)
    return module


def held_out(data: Path) -> list[dict[str, torch.Tensor]]:
    return [as_batch(PackedBatches([data], 16, ()).__getitems__([0, 1, 2]))]


class Spy(Callback):
    """Remembers the weights after each batch, before the other callbacks see it."""

    def __init__(self) -> None:
        self.after: dict[int, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = [value.double().flatten() for value in pl_module.state_dict().values()]
        self.after[pl_module.batches_seen] = torch.cat(state)


# Frozen layers


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Linear(5, 6, bias=False))


def test_presets_by_hand():
    nets = {"a": network()}
    assert frozen_parameters(nets, "none") == {"a": frozenset()}
    # Four layers: the convolution and the normalisation are the first half.
    assert frozen_parameters(nets, "late")["a"] == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert frozen_parameters(nets, "biases")["a"] == {"0.weight", "2.weight", "3.weight"}
    assert frozen_parameters({"b": nn.Linear(2, 2, bias=False)}, "biases") == {"b": frozenset()}, "something must learn"
    with pytest.raises(ValueError, match=", ".join(PRESETS)):
        frozen_parameters(nets, "early")


def test_frozen_layers_stay_bit_by_bit_and_the_others_learn(tmp_path, data):
    class Waking(Toy):
        """As a method that switches a network off and on again within a batch."""

        def step(self, *arguments: Any) -> Any:
            result = super().step(*arguments)
            self.generator.requires_grad_(False).requires_grad_(True)
            return result

    toy = Waking()
    toy.frozen = frozen_parameters({"generator": toy.generator}, "late")
    assert toy.frozen["generator"] == {"0.weight", "0.bias"}
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    fit(tmp_path, data, NetworkEMA(("generator",), 0.9), toy=toy)
    moved = {name for name, value in toy.state_dict().items() if not torch.equal(value, before[name])}
    assert not moved & {"generator.0.weight", "generator.0.bias"}
    assert {"generator.1.weight", "generator.2.weight", "encoder.0.weight", "discriminator.1.weight"} <= moved


def test_statistics_of_frozen_layers_stay(tmp_path, data):
    toy = Toy()
    toy.frozen = {"generator": frozenset({"1.weight", "1.bias"})}
    before = toy.generator[1].running_mean.clone()
    fit(tmp_path, data, NetworkEMA(("generator",), 0.9), toy=toy)
    assert torch.equal(toy.generator[1].running_mean, before)
    assert not torch.equal(toy.encoder[1].running_mean, torch.zeros(4))


# Early stop


def test_a_look_changes_nothing(tmp_path, data):
    plain, looking = Spy(), Spy()
    ema = NetworkEMA(("generator",), 0.9)
    fit(tmp_path / "a", data, plain, NetworkEMA(("generator",), 0.9))
    early = EarlyStop(held_out(data), 1, 99, ema)
    fit(tmp_path / "b", data, looking, ema, early)
    # Phase one has five batches; its end restores the best look.
    for batch in range(1, 5):
        assert torch.equal(plain.after[batch], looking.after[batch]), batch
    assert [look["batch"] for look in early.looks[:5]] == [1, 2, 3, 4, 5]
    assert len({look["held_out"] for look in early.looks[:5]}) == 5, "it looks at weights that learn"


class Scripted(EarlyStop):
    """Looks whose outcome is known."""

    def __init__(self, values: list[float], ema: NetworkEMA, patience: int = 2) -> None:
        super().__init__([], 1, patience, ema)
        self.values = values

    def _look(self, *_: Any) -> float:
        return self.values[len(self.looks)]


def test_stops_after_its_patience_and_goes_back_to_the_best(tmp_path, data):
    ema, spy = NetworkEMA(("generator",), 0.9), Spy()
    # Phase one: best at batch 1, two looks without progress (0.5 % better would count, 0.1 % does not), over at batch 3
    # of 5. Phase two: always better, so it runs all of its 9 batches.
    early = Scripted([1.0, 1.1, 0.999, *(0.5 - 0.01 * i for i in range(9))], ema)
    toy = fit(tmp_path, data, spy, ema, early)
    assert [look["batch"] for look in early.looks] == [1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert toy.batches_seen == toy.total_batches
    assert [entry[1] for entry in toy.seen] == ["one"] * 3 + ["two"] * 9
    encoder = torch.cat([v.double().flatten() for k, v in toy.state_dict().items() if k.startswith("encoder")])
    first = spy.after[1][: len(encoder)]
    assert torch.equal(encoder, first), "phase two does not train the encoder: it is that of the best look"


def test_an_interrupted_early_stop_goes_on_as_if_it_were_not(tmp_path, data):
    values = [1.0, 0.9, 0.95, 0.97, *(0.5 for _ in range(12))]
    whole = fit(tmp_path / "whole", data, ema := NetworkEMA(("generator",), 0.9), Scripted(values, ema))
    (tmp_path / "parts").mkdir()
    fit(tmp_path / "parts", data, ema := NetworkEMA(("generator",), 0.9), Scripted(values, ema), toy=Toy(stop_at=2))
    again = NetworkEMA(("generator",), 0.9)
    second = fit(tmp_path / "parts", data, again, early := Scripted(values, again), resume=True)
    assert [look["batch"] for look in early.looks][:4] == [1, 2, 3, 4]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


# The recipe's settings


def test_a_run_that_an_older_version_began_may_go_on(tmp_path):
    recipe = Recipe("toy.x", "toy", "", {"size": 16}, TrainConfig(), ("a",))
    _prepare_folder(tmp_path, recipe, False)
    (tmp_path / "last.ckpt").touch()
    older = json.loads((tmp_path / "recipe.json").read_text())
    for name in ("freeze", "held_out", "patience", "look_every_batches", "keep_last"):
        del older["train"][name]
    (tmp_path / "recipe.json").write_text(json.dumps(older))
    assert _prepare_folder(tmp_path, recipe, False)
    frozen = dataclasses.replace(recipe, train=dataclasses.replace(TrainConfig(), freeze="late"))
    with pytest.raises(CheckpointError, match=r"train\.freeze: none -> late"):
        _prepare_folder(tmp_path, frozen, False)


def test_a_real_method_adapts_with_frozen_layers_and_exports_both_weights(tmp_path):
    recipe = write_recipe(tmp_path)
    first = train(recipe, output=tmp_path / "first", accelerator="cpu")
    held = make_set(tmp_path / "held.safetensors", count=3, size=128, dim=128)
    changes = ["train.freeze=late", f"train.held_out={held}", "train.patience=1", "train.look_every_batches=1"]
    with pytest.raises(InputError, match="--init-from"):
        train(recipe, output=tmp_path / "second", accelerator="cpu", overrides=changes)
    changes.append("train.keep_last=true")
    second = train(recipe, output=tmp_path / "third", accelerator="cpu", overrides=changes, init_from=first.checkpoint)
    assert second.finished
    looks = json.loads((tmp_path / "third" / "held_out.json").read_text())
    assert {look["phase"] for look in looks} == {"disentangle", "conceal"}
    old = load_networks(first.checkpoint, read_manifest(first.checkpoint)[0])
    manifest, _ = read_manifest(second.checkpoint)
    new = load_networks(second.checkpoint, manifest)
    frozen = frozen_parameters_of_checkpoint(recipe)
    assert frozen["generator"]
    for name in frozen["generator"]:
        assert torch.equal(old["generator"][name], new["generator"][name]), name
    assert any(not torch.equal(old["generator"][k], new["generator"][k]) for k in old["generator"])
    assert "generator.last.safetensors" in manifest["files"]
    assert manifest["training"]["started_from"]["name"] == "identity_rotation.small"


def frozen_parameters_of_checkpoint(recipe: Path) -> dict[str, frozenset[str]]:
    from facezoo.core.run import training_class

    module = training_class("identity_rotation")(json.loads(recipe.read_text())["config"])
    return frozen_parameters(module.networks(), "late")
