"""Recipes: one YAML a method, data set and size. Unknown keys are errors; values can be overridden by ``key=value``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from facezoo.core.configuration import build_strict
from facezoo.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What every training run needs, whatever the method.

    Attributes:
        batch_size: Pictures a batch and process.
        seed: Seed of weights, order and every random draw.
        precision: Lightning's precision; bf16-mixed is for machines that compute in bfloat16.
        channels_last: Memory format of the networks (faster convolutions on CPU and GPU).
        compile: Compile each trained network in place (``network.compile()``).
        ema_decay: Decay of the averaged weights that ship.
        save_every_minutes: Minutes between checkpoints.
        log_every_batches: Batches between lines of the log.
        sheet_every_batches: Batches between sample sheets.
        tick_batches: Batches of one Lightning epoch; epochs have no other meaning here.
        loader_workers: Processes that read the data; 0 reads in the training process (enough for packed sets).
        freeze: Which layers of the networks that ``--init-from`` brought stay as they are (``core.freezing.PRESETS``).
        held_out: Packed set that is never trained on, for stopping early; "" for none.
        patience: Looks at ``held_out`` without progress that end a phase; 0 never ends one early.
        look_every_batches: Batches between looks.
        decay_share: Share of each phase, at its end, over which all learning rates fall in a straight line to a
            hundredth; 0 leaves them as they are.
        keep_last: Export the weights of the last batch too, beside the averaged ones (variant "last").
    """

    batch_size: int = 16
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = True
    compile: bool = False
    ema_decay: float = 0.999
    save_every_minutes: float = 5.0
    log_every_batches: int = 20
    sheet_every_batches: int = 250
    tick_batches: int = 250
    loader_workers: int = 0
    freeze: Literal["none", "late", "biases"] = "none"
    held_out: str = ""
    patience: int = 0
    look_every_batches: int = 50
    decay_share: float = 0.0
    keep_last: bool = False

    def __post_init__(self) -> None:
        """Refuses what would fail or never end later, with the name of the setting."""
        for name in ("batch_size", "log_every_batches", "sheet_every_batches", "tick_batches", "look_every_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.loader_workers < 0 or self.seed < 0:
            raise ValueError("loader_workers and seed must not be negative")
        if self.patience < 0 or (self.patience and not self.held_out):
            raise ValueError("patience must not be negative, and needs held_out: a packed set to look at")
        if not self.save_every_minutes > 0:
            raise ValueError(f"save_every_minutes must be above 0, not {self.save_every_minutes}")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share must be from 0 to 1, not {self.decay_share}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to below 1, not {self.ema_decay}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A parsed recipe file.

    Attributes:
        name: Model name that the run exports, ``method.tag``.
        method: Method in the registry.
        summary: One line for ``facezoo list``.
        config: The method's own configuration (checked by its dataclass).
        train: Settings of the run.
        data: Paths of packed sets, relative to the working directory.
    """

    name: str
    method: str
    summary: str
    config: dict[str, Any]
    train: TrainConfig
    data: tuple[str, ...]


def recipe_folder() -> Path:
    """Where the recipes that ship lie: in the wheel, or at the root of the repository."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def found_recipe(path: str | Path) -> Path:
    """The file itself, or else the recipe of that name that ships, with or without ``recipes/`` and ``.yaml``."""
    path = Path(path)
    if path.exists():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts
    for name in (Path(*parts), Path(*parts).with_suffix(".yaml")) if parts else ():
        if ".." not in parts and not path.is_absolute() and (recipe_folder() / name).is_file():
            return recipe_folder() / name
    return path


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides such as ``train.batch_size=8`` or ``config.size=64``.

    Args:
        path: A file, or the name of a recipe that ships, such as ``identity_rotation/faces128_cpu``.
        overrides: ``key=value`` changes.

    Raises:
        InputError: No such file, not YAML, unknown key, override without ``=``.
    """
    path = found_recipe(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the recipe {path}: {error.strerror}; see `facezoo recipes list` for the ones that ship"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a YAML recipe: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} is not a recipe: expected a mapping with name, method, config, train and data")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"override {override!r} has no '='; write for example train.batch_size=8")
        *parents, leaf = key.split(".")
        target = raw
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise InputError(f"override {override!r}: {parent} is not a section of the recipe")
        try:
            target[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"override {override!r}: the value is not YAML; put a text into quotes") from error
    train = build_strict(TrainConfig, raw.get("train") or {}, f"{path.name}: train")
    if isinstance(raw.get("data"), str):
        raw["data"] = [raw["data"]]
    return build_strict(Recipe, {**raw, "train": train}, path.name)
