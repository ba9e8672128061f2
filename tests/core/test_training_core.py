"""The training core: clock, freezing, order, averages, stops that lose nothing."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Literal

import pytest
import torch

from facezoo.core.configuration import build_strict
from facezoo.core.ema import NetworkEMA
from facezoo.core.phases import Phase
from facezoo.core.recipe import TrainConfig, load_recipe
from facezoo.core.sampler import StepSampler
from facezoo.errors import InputError
from tests.core.toy import Toy, make_set, run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("data") / "set.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The uninterrupted run that the others are held against."""
    return run(tmp_path_factory.mktemp("whole"), data)


def weights(module, ema):
    states = [*module.state_dict().values(), *ema.shadow["generator"].state_dict().values()]
    return torch.cat([value.double().flatten() for value in states])


class TestPhases:
    def test_clock_walks_through_the_phases(self):
        toy = Toy()
        assert [toy.locate(n)[0].name for n in (0, 4, 5, 13, 99)] == ["one", "one", "two", "two", "two"]
        assert toy.locate(7)[1] == 2
        assert toy.total_batches == 14

    def test_discriminator_ratio_by_batches(self):
        phase = Phase("p", 100, (), discriminator_batches=10)
        sides = [phase.side(i) for i in range(22)]
        assert sides == (["discriminator"] * 10 + ["generator"]) * 2
        assert Phase("p", 3, ()).side(1) == "both"

    def test_what_learns_on_which_side(self):
        phase = Phase("p", 9, ("g", "d"), discriminator_batches=2, judges=("d",))
        assert [phase.learning(i) for i in range(4)] == [("d",), ("d",), ("g",), ("d",)]
        assert Phase("p", 9, ("g", "d"), discriminator_batches=2).learning(0) == ("g", "d")
        assert Phase("p", 9, ("g", "d"), judges=("d",)).learning(0) == ("g", "d")

    @pytest.mark.parametrize("judges", [("discriminator",), ()])
    def test_discriminator_batches_do_not_wear_the_generator_s_average(self, judges):
        """Nothing moves the generator in them, so with ten to one its average was eleven times shorter than asked."""
        toy, ema = Toy(), NetworkEMA(("generator",), 0.9)
        toy.phases = (Phase("two", 9, ("generator", "discriminator"), discriminator_batches=2, judges=judges),)
        ema.on_train_start(None, toy)
        for toy.batches_seen in range(1, 7):
            ema.on_train_batch_end(None, toy)
        assert ema.updates == {"generator": 2 if judges else 6}

    def test_freezing_follows_the_clock(self):
        toy = Toy()
        toy.generator[0].weight.grad = torch.ones_like(toy.generator[0].weight)
        toy.discriminator[1].weight.grad = torch.ones_like(toy.discriminator[1].weight)
        toy.apply_phase()
        assert all(p.requires_grad for p in toy.encoder.parameters())
        assert toy.discriminator[1].weight.grad is None, "a stale gradient would move a frozen weight"
        assert toy.generator[0].weight.grad is not None
        toy.batches_seen = 5
        toy.apply_phase()
        assert not any(p.requires_grad for p in toy.encoder.parameters())
        assert not toy.encoder.training
        assert toy.generator.training

    def test_unknown_network_in_a_phase(self):
        toy = Toy()
        toy.phases = (Phase("p", 1, ("decoder",)),)
        with pytest.raises(ValueError, match="decoder"):
            toy.apply_phase()

    def test_random_numbers_depend_on_the_clock_and_purpose_only(self):
        a, b = Toy(), Toy()
        b.batches_seen = 1
        draw = lambda module, purpose: torch.rand(3, generator=module.generator_for(purpose))  # noqa: E731
        assert torch.equal(draw(a, "x"), draw(a, "x"))
        assert not torch.equal(draw(a, "x"), draw(a, "y"))
        assert not torch.equal(draw(a, "x"), draw(b, "x"))


class TestSampler:
    def test_two_processes_see_the_batches_of_one(self):
        one = StepSampler(7, 4, 1, 0, 9, lambda: 3)
        two = [StepSampler(7, 2, 2, rank, 9, lambda: 3) for rank in (0, 1)]
        for whole, left, right in islice(zip(one, *two, strict=False), 6):
            assert sorted(whole) == sorted(left + right)
            assert whole[0::2] == left
            assert whole[1::2] == right

    def test_every_lap_has_every_face_once(self):
        stream = [i for batch in islice(StepSampler(10, 5, 1, 0, 1, lambda: 0), 6) for i in batch]
        for lap in range(3):
            assert sorted(stream[10 * lap : 10 * lap + 10]) == list(range(10))
        assert stream[:10] != stream[10:20]

    def test_starts_in_the_middle(self):
        full = list(islice(StepSampler(10, 3, 1, 0, 1, lambda: 0), 8))
        assert list(islice(StepSampler(10, 3, 1, 0, 1, lambda: 5), 3)) == full[5:]

    def test_empty_set(self):
        with pytest.raises(ValueError, match="empty"):
            StepSampler(0, 3, 1, 0, 1, lambda: 0)


class TestRuns:
    def test_sides_and_end(self, whole):
        module, _ = whole
        assert module.batches_seen == 14
        sides = [(phase, side) for _, phase, side, _ in module.seen]
        assert sides[:5] == [("one", "both")] * 5
        assert sides[5:] == [("two", s) for s in ("discriminator", "discriminator", "generator") * 3]

    def test_frozen_networks_are_bit_identical(self, tmp_path, data, whole):
        part, _ = run(tmp_path, data, stop_at=4)  # the end of phase one
        after = whole[0].encoder.state_dict()
        for name, value in part.encoder.state_dict().items():
            assert torch.equal(value, after[name]), name
        start = Toy().discriminator.state_dict()
        for name, value in part.discriminator.state_dict().items():
            assert torch.equal(value, start[name]), name

    @pytest.mark.parametrize("stop_at", [2, 3, 4, 8])
    def test_resume_equals_uninterrupted(self, tmp_path, data, whole, stop_at):
        first, _ = run(tmp_path, data, stop_at=stop_at)
        assert first.batches_seen == stop_at + 1
        second, ema = run(tmp_path, data, resume=True)
        assert first.seen + second.seen == whole[0].seen
        assert torch.equal(weights(second, ema), weights(*whole))

    def test_learning_rates_fall_at_the_end_of_each_phase(self, tmp_path, data, whole):
        """.4 of 5 and of 9 batches: the last 2 and 3.6; by hand, and the same through a stop."""
        module, whole_average = run(tmp_path / "a", data, decay_share=0.4)
        factors = [1, 1, 1, 1, 1 / 2, 1, 1, 1, 1, 1, 1, 3 / 3.6, 2 / 3.6, 1 / 3.6]
        assert module.rates == [pytest.approx((0.01 * f, 0.01 * f)) for f in factors]
        assert whole[0].rates == [(0.01, 0.01)] * 14
        first, _ = run(tmp_path / "b", data, stop_at=12, decay_share=0.4)
        second, ema = run(tmp_path / "b", data, resume=True, decay_share=0.4)
        assert first.rates + second.rates == module.rates
        assert torch.equal(weights(second, ema), weights(module, whole_average))

    def test_learning_rates_never_fall_to_nothing(self):
        module = Toy()
        module.decay_share = 1e-3
        module.batches_seen = 10_000
        assert module.learning_rate_factor() == 0.01

    def test_average_by_hand(self, whole):
        """Only batches of phases in which the network learns count, with the warm-up of the decay."""
        module, ema = whole
        assert ema.updates == {"generator": 14}
        buffers = dict(module.generator.named_buffers())
        for name, buffer in ema.shadow["generator"].named_buffers():
            assert torch.equal(buffer, buffers[name]), "buffers are copied, not averaged"
        assert not torch.equal(ema.shadow["generator"][0].weight, module.generator[0].weight)


class TestRecipe:
    def test_unknown_key_names_the_nearest(self):
        with pytest.raises(InputError, match="'batchsize'; did you mean batch_size"):
            build_strict(TrainConfig, {"batchsize": 3}, "train")

    @pytest.mark.parametrize(
        ("key", "value"), [("batch_size", "16"), ("batch_size", 1.5), ("batch_size", True), ("compile", 1)]
    )
    def test_wrong_type(self, key, value):
        with pytest.raises(InputError, match=f"train.{key}"):
            build_strict(TrainConfig, {key: value}, "train")

    def test_choices_lists_and_numbers(self):
        @dataclasses.dataclass
        class Config:
            kind: Literal["a", "b"] = "a"
            widths: tuple[int, ...] = ()
            rate: float = 0.0
            limit: int | None = None

        built = build_strict(Config, {"kind": "b", "widths": [1, 2], "rate": 1, "limit": None}, "config")
        assert built == Config("b", (1, 2), 1.0, None)
        with pytest.raises(InputError, match="not one of a, b"):
            build_strict(Config, {"kind": "c"}, "config")
        with pytest.raises(InputError, match="expected a list"):
            build_strict(Config, {"widths": "12"}, "config")

    def test_overrides_and_bad_files(self, tmp_path):
        path = tmp_path / "r.yaml"
        path.write_text("name: a.b\nmethod: a\nsummary: s\ndata: x.safetensors\nconfig: {size: 64}\n")
        recipe = load_recipe(path, ["train.batch_size=8", "config.size=32"])
        assert (recipe.train.batch_size, recipe.config, recipe.data) == (8, {"size": 32}, ("x.safetensors",))
        for override in ("train.batch_size", "name.x=1", "trian.batch_size=8"):
            with pytest.raises(InputError):
                load_recipe(path, [override])
        path.write_text("- a list")
        with pytest.raises(InputError, match="not a recipe"):
            load_recipe(path)
        with pytest.raises(InputError, match="cannot read"):
            load_recipe(tmp_path / "absent.yaml")
