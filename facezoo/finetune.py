"""``facezoo finetune``: a trained model, adapted to one's own pictures, in one command.

prepare (find, align, pack) -> hold some people out -> measure the model as it is -> train on the others, with early
layers frozen and an early stop -> measure again -> a checkpoint with its card, and a table before / after.

Every step leaves its result in the output folder and is skipped when the same command is given again; a training that
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from facezoo.core.configuration import build_strict
from facezoo.core.recipe import TrainConfig
from facezoo.core.run import train, training_class
from facezoo.data.labelling import label_set
from facezoo.data.packed import PackedFaces, rewrite_packed
from facezoo.data.prepare import prepare
from facezoo.errors import CheckpointError, InputError, OutputError
from facezoo.evaluate.protocol import EvaluationSettings
from facezoo.evaluate.report import JSON_NAME
from facezoo.evaluate.run import run_evaluation
from facezoo.files import atomic_write
from facezoo.hub.card import card_text, headline
from facezoo.hub.manifest import ResolvedModel, load_networks, read_manifest, resolve_model, write_checkpoint
from facezoo.registry import method_info, require_anonymizer

__all__ = ["FineTuneSettings", "FineTuned", "before_after", "finetune", "split_people"]

_MINIMUM_PEOPLE: Final = 12
_SALT: Final = "facezoo-finetune:"
_RATES: Final = (1e-3, 1e-2, 5e-2)


@dataclass(frozen=True)
class FineTuneSettings:
    """How a model is adapted.

    Attributes:
        freeze: which layers stay (``facezoo.core.freezing.PRESETS``): "late", "biases" or "none".
        batches: of all phases together, shared out as in the model's own training.
        rate: the learning rates of the model's own training are multiplied by this.
        patience: looks at held-out pictures without progress that end a phase; 0: no early stop.
        held_out: part of the people that is never trained on; they are what is measured.
        faces: of the held-out people that are measured, at most.
        identity: whose face it is, as for ``facezoo prepare``: "subfolder" or "file".
        rights: where the pictures come from and under which rights; for the card.
        name: of the new model, ``method.tag``; "": the old name with "-finetuned".
        labels: csv of attributes, for methods that are trained with them; "" for none.
        overrides: further ``key=value`` changes of the recipe.
    """

    freeze: str = "late"
    batches: int = 300
    rate: float = 0.25
    patience: int = 4
    held_out: float = 0.2
    faces: int = 60
    identity: str = "subfolder"
    rights: str = ""
    name: str = ""
    labels: str = ""
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what would fail later.

        Raises:
            InputError: a number out of range.
        """
        if self.batches < 2 or self.patience < 0 or self.faces < 2:
            raise InputError("fine-tuning needs batches >= 2, faces >= 2 and a patience of 0 or more")
        if not 0 < self.rate <= 1 or not 0.05 <= self.held_out <= 0.5:
            raise InputError("the rate must be above 0 and at most 1, the held-out part from 0.05 to 0.5")


@dataclass(frozen=True)
class FineTuned:
    """What ``finetune`` leaves.

    Attributes:
        folder: output folder.
        checkpoint: the adapted model; ``--model`` takes it.
        card: its card.
        table: before and after, as Markdown.
        finished: False when the time was up before the training was done; the same command goes on.
    """

    folder: Path
    checkpoint: Path
    card: Path
    table: str
    finished: bool


def finetune(
    model: str,
    data: str | Path,
    output: str | Path,
    settings: FineTuneSettings,
    *,
    revision: str | None = None,
    max_minutes: float | None = None,
    accelerator: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> FineTuned:
    """Adapts a model to pictures and measures it before and after.

    Args:
        model: a learned model of ``facezoo list``, a checkpoint folder or org/name.
        data: folder of pictures, or a packed set (``.safetensors``) of the model's size.
        output: folder of everything that is made.
        settings: how.
        revision: of a hub repository.
        max_minutes: stop the training after this time; the same command goes on.
        accelerator: "auto", "cpu" or "gpu".
        overwrite: throw away what another fine-tuning left in the folder.
        progress: show progress bars.

    Returns:
        Where everything lies.

    Raises:
        InputError: too few people, a model that is not trained, or pictures that lack what its training needs.
        CheckpointError: a damaged checkpoint, or one that does not say how it was trained.
        OutputError: the folder holds something else.
    """
    base = resolve_model(model, revision=revision)
    require_anonymizer(base.method, base.name)
    if base.folder is None or base.manifest is None or not method_info(base.method).training:
        raise InputError(f"{base.name} is not a model that is trained; choose a learned one of `facezoo list`")
    folder = Path(output)
    _claim(folder, base, Path(data), settings, overwrite)
    size = int(base.manifest["crop_size"])
    packed = _pack(Path(data), folder, settings, size, progress)
    training, held_out = split_people(packed, folder, settings.held_out)
    recipe = _write_recipe(base, training, held_out, folder, settings, accelerator)
    judged = _judging(held_out, settings, progress)

    before = _evaluated(str(base.folder), held_out, folder / "before", judged)
    run = folder / "run"
    done = folder / "trained"
    if not done.exists():
        result = train(
            recipe,
            output=run,
            overrides=settings.overrides,
            max_minutes=max_minutes,
            accelerator=accelerator,
            init_from=base.folder,
        )
        if not result.finished:
            return FineTuned(folder, result.checkpoint, folder / "card.md", "", False)
        atomic_write(done, b"", overwrite=True)
    after = _evaluated(str(run / "checkpoint"), held_out, folder / "evaluation", judged)
    table = before_after(before, after)
    atomic_write(folder / "before_after.md", table.encode(), overwrite=True)
    manifest = _finish(base, run / "checkpoint", folder / "checkpoint", settings, after, len(PackedFaces(training)))
    atomic_write(folder / "card.md", card_text(manifest, after).encode(), overwrite=True)
    return FineTuned(folder, folder / "checkpoint", folder / "card.md", table, True)


def _claim(folder: Path, base: ResolvedModel, data: Path, settings: FineTuneSettings, overwrite: bool) -> None:
    """Takes the folder for this model, these pictures and these settings, or finds that it is taken by others."""
    wanted = {"model": base.name, "manifest_sha256": base.sha256, "data": str(data.resolve())}
    wanted |= json.loads(json.dumps(dataclasses.asdict(settings)))
    note = folder / "finetune.json"
    if note.is_file() and not overwrite:
        try:
            there = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{note} cannot be read ({error}); choose another folder, or --overwrite") from error
        if there != wanted:
            changed = sorted(key for key in wanted if not isinstance(there, dict) or there.get(key) != wanted[key])
            raise OutputError(
                f"{folder} holds a fine-tuning with another {', '.join(changed)}; choose another folder, or --overwrite"
            )
        return
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite and note.is_file()):
        raise OutputError(f"{folder} is not empty and holds no fine-tuning; choose another folder with -o")
    if overwrite and note.is_file():
        import shutil

        shutil.rmtree(folder)
    atomic_write(note, (json.dumps(wanted, indent=1) + "\n").encode(), make_parents=True)


def _pack(data: Path, folder: Path, settings: FineTuneSettings, size: int, progress: bool) -> Path:
    """The pictures as a packed set, made once."""
    packed = folder / "pictures.safetensors"
    if packed.is_file():
        return packed
    if data.suffix == ".safetensors":
        if PackedFaces(data).size != size:
            raise InputError(f"{data} holds faces of {PackedFaces(data).size} pixels and the model takes {size}")
        rewrite_packed(data, packed)
    else:
        identity: Any = settings.identity
        prepare(data, packed, size=size, identity=identity, source=settings.rights, progress=progress)
    if settings.labels:
        label_set(packed, table=settings.labels, measure=True)
    return packed


def split_people(packed: Path, folder: Path, share: float) -> tuple[Path, Path]:
    """Splits a packed set by people into ``train.safetensors`` and ``held_out.safetensors``.

    Who is held out follows from a hash of the name, so it is the same in every run; all pictures of a person stay
    together.

    Raises:
        InputError: fewer than 12 people.
    """
    training, held_out = folder / "train.safetensors", folder / "held_out.safetensors"
    if training.is_file() and held_out.is_file():
        return training, held_out
    faces = PackedFaces(packed)
    names = list(faces.identities)
    present = sorted({names[index] for index in np.asarray(faces.identity)})
    if len(present) < _MINIMUM_PEOPLE:
        raise InputError(
            f"{len(present)} people in the pictures: at least {_MINIMUM_PEOPLE} are needed, since some are kept for "
            "measuring. Put each person's pictures into a folder of their own, or use --identity file"
        )
    ordered = sorted(present, key=lambda name: hashlib.sha256((_SALT + name).encode()).digest())
    # Seven people give 21 pairs, the fewest that a false accept rate of 5 % can be told from.
    count = max(7, round(share * len(present)))
    chosen = set(ordered[: min(count, len(present) - 2)])
    kept = np.array([names[index] in chosen for index in np.asarray(faces.identity)])
    rewrite_packed(packed, held_out, indices=np.flatnonzero(kept).tolist(), overwrite=True)
    rewrite_packed(packed, training, indices=np.flatnonzero(~kept).tolist(), overwrite=True)
    return training, held_out


def _write_recipe(
    base: ResolvedModel,
    training: Path,
    held_out: Path,
    folder: Path,
    settings: FineTuneSettings,
    accelerator: str,
) -> Path:
    """The recipe of the adaptation: that of the model, shorter, slower, with frozen layers."""
    import torch

    manifest: Mapping[str, Any] = base.manifest or {}
    original = manifest["training"].get("recipe")
    if not isinstance(original, Mapping):
        raise CheckpointError(
            f"{base.name} does not say how it was trained (no recipe in its manifest), so it cannot be trained on; "
            "choose a model that was trained with facezoo"
        )
    config = dict(manifest["config"])
    module = training_class(base.method)(config)
    lengths = {phase.name: phase.batches for phase in module.phases if phase.batches > 0}
    shares = {f"{name}_batches": length for name, length in lengths.items()}
    if set(shares) - set(config):  # one phase that consists of several lengths
        shares = {key: int(config[key]) for key in config if key.endswith("_batches") and config[key]}
    whole = sum(shares.values())
    for key, length in shares.items():
        config[key] = max(1, round(settings.batches * length / whole))
    for key in config:
        if key.endswith("learning_rate"):
            config[key] = config[key] * settings.rate
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    config |= module.trained_further
    count = min(int(original["train"].get("batch_size", 16)), len(PackedFaces(training)))
    count -= count % min(count, module.batch_group)
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    run = {key: value for key, value in original["train"].items() if key in fields}
    by_index = getattr(module, "labels_by_index", False)
    run |= {
        "batch_size": count,
        "loader_workers": 0,
        "compile": False,
        "precision": run.get("precision", "32-true") if gpu else "32-true",
        "ema_decay": min(float(run.get("ema_decay", 0.99)), 0.99),
        "log_every_batches": max(1, settings.batches // 40),
        "sheet_every_batches": max(1, settings.batches // 4),
        "look_every_batches": max(1, settings.batches // 12),
        "tick_batches": min(250, settings.batches),
        "freeze": settings.freeze,
        # Its labels are looked up by the picture's place in the training set, which held-out pictures do not have.
        "held_out": "" if by_index or not settings.patience else str(held_out),
        "patience": 0 if by_index else settings.patience,
    }
    build_strict(TrainConfig, run, "train")
    name = settings.name or f"{base.name}-finetuned"
    if not re.fullmatch(re.escape(base.method) + r"\.[a-z0-9_\-]+", name):
        raise InputError(f"the model's name must be {base.method}.TAG in small letters, not {name!r}")
    recipe = {
        "name": name,
        "method": base.method,
        "summary": f"{base.name}, adapted to other pictures",
        "data": [str(training)],
        "train": run,
        "config": config,
    }
    path = folder / "recipe.yaml"
    atomic_write(path, (json.dumps(recipe, indent=2) + "\n").encode(), overwrite=True)
    return path


def _judging(held_out: Path, settings: FineTuneSettings, progress: bool) -> EvaluationSettings:
    """What can be measured on so few people: the smallest false accept rate that their pairs can tell."""
    identity = np.asarray(PackedFaces(held_out).identity)
    pairs = int((identity[:, None] != identity[None, :]).sum()) // 2
    usable = [rate for rate in _RATES if pairs * rate >= 1]
    if not usable:
        raise InputError(f"the held-out people give {pairs} pairs; add pictures of more people")
    return EvaluationSettings(
        formats=("png",), limit=min(settings.faces, len(identity)), key_count=8, far=(usable[0],), progress=progress
    )


def _evaluated(model: str, held_out: Path, folder: Path, settings: EvaluationSettings) -> dict[str, Any]:
    """An evaluation that is done once."""
    path = folder / JSON_NAME
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result
    return run_evaluation(model, held_out, folder, settings=settings, overwrite=True)


def before_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The table that a fine-tuning is judged by.

    Args:
        before: evaluation of the model as it was.
        after: evaluation of the adapted one, on the same faces.

    Returns:
        Markdown: each figure with its 95 % interval, and which way is better.
    """
    far = f"far_{before['far'][0]:g}"

    def figure(value: Mapping[str, Any] | None, scale: float, unit: str, digits: int) -> str:
        if value is None or value["value"] is None:
            return "-"
        low, high = scale * value["low"], scale * value["high"]
        return f"{scale * value['value']:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"

    rows: list[tuple[str, str, str, str]] = []

    def add(title: str, better: str, pair: Sequence[Any], scale: float = 100, unit: str = " %") -> None:
        # Rates in per cent with one digit, cosines and similarities with three.
        first, second = (figure(value, scale, unit, 1 if scale == 100 else 3) for value in pair)
        rows.append((title, better, first, second))

    for judge in before["judges"]:
        mark = "*" if before["judges"][judge]["took_part_in_training"] else ""
        both = [result["anonymized"]["judges"][judge] for result in (before, after)]
        add(f"taken for the original, {judge}{mark}", "lower", [part["taken"][far] for part in both])
        add(f"cosine to the original, {judge}{mark}", "lower", [part["cosine"] for part in both], 1, "")
    add("face detected", "higher", [result["anonymized"]["detected"] for result in (before, after)])
    if before["recovered"] is not None:
        for kind, title, better in (("recovered", "right key", "higher"), ("wrong_key", "wrong key", "lower")):
            parts = [result[kind]["png"] if kind == "recovered" else result[kind] for result in (before, after)]
            if any(part is None for part in parts):
                continue
            for judge in before["judges"]:
                taken = [part["judges"][judge]["taken"][far] for part in parts]
                add(f"{title} taken for the original, {judge}", better, taken)
            if kind == "recovered":
                add("right key, PSNR in dB", "higher", [part["psnr"] for part in parts], 1, "")
                add("right key, SSIM", "higher", [part["ssim"] for part in parts], 1, "")
    lines = [
        f"# {before['name']} before and after",
        "",
        f"{before['n']} faces of {before['people']} people who were not trained on; false accept rate "
        f"{before['far'][0]:g}; in brackets 95 % intervals. Overlapping intervals say that nothing was shown.",
        "",
        "| figure | better | before | after |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    if any(entry["took_part_in_training"] for entry in before["judges"].values()):
        lines += ["\\* This judge took part in the training: its figures flatter.", ""]
    return "\n".join(lines)


def _finish(
    base: ResolvedModel,
    trained: Path,
    target: Path,
    settings: FineTuneSettings,
    after: Mapping[str, Any],
    pictures: int,
) -> dict[str, Any]:
    """The exported checkpoint with the words, licences and figures of the adapted model."""
    old: Mapping[str, Any] = base.manifest or {}
    manifest, _ = read_manifest(trained)
    card = {**old["card"], **manifest["card"]}
    limits = card.get("Limits", [])
    limits = [limits] if isinstance(limits, str) else list(limits)
    card["Limits"] = [
        *limits,
        f"Adapted to {pictures} pictures: it fits pictures like those, and may be worse for all others. What is said "
        f"above was measured for {base.name}.",
    ]
    rights = settings.rights or "the user's own pictures, whose rights were not stated"
    card["Training data"] = f"{card.get('Training data', '')} Adapted to: {rights}.".strip()
    card["Fine-tuning"] = (
        f"From {base.name} (manifest {base.sha256[:16]}), {manifest['training']['batches']} batches at "
        f"{settings.rate:g} of its learning rates, frozen layers: {settings.freeze}."
    )
    licences = {"code": "Apache-2.0", "weights": old["licence"], **old.get("licences", {})}
    licences["data"] = f"{licences.get('data', f'as {base.name}')}; {rights}"
    plain = {key: value for key, value in manifest.items() if key not in ("files", "checksum")}
    plain |= {"card": card, "licences": licences, "licence": licences["weights"], "metrics": headline(after)}
    if old.get("paper"):
        plain["paper"] = old["paper"]
    return write_checkpoint(target, plain, load_networks(trained, manifest), overwrite=True)
