"""A training run: one command, resumes by itself, ends in a checkpoint of safetensors files.

It needs torch, lightning, safetensors, numpy, the repository and packed data files, nothing else: wandb and kornia are
imported only when a recipe or an option asks for them, and Pillow only where it is installed.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import platform
import signal
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from facezoo import __version__
from facezoo.core.batches import PackedBatches, as_batch
from facezoo.core.callbacks import EndOfPhases, RunLog, SampleSheets
from facezoo.core.early_stop import EarlyStop
from facezoo.core.ema import NetworkEMA
from facezoo.core.freezing import frozen_parameters
from facezoo.core.launch import check_launch, find_launch, requeue_slurm_job, require_prepared
from facezoo.core.phases import PhasedModule
from facezoo.core.preemption import Preemption
from facezoo.core.recipe import Recipe, TrainConfig, load_recipe
from facezoo.core.sampler import StepSampler
from facezoo.core.tracking import Tracking
from facezoo.errors import CheckpointError, InputError, OutputError
from facezoo.files import atomic_write
from facezoo.hub.manifest import write_checkpoint
from facezoo.registry import method_info

_SHEET_FACES = 8
_LOOK_FACES = 64
_FREE_SETTINGS = (
    "save_every_minutes",
    "log_every_batches",
    "sheet_every_batches",
    "loader_workers",
    "compile",
    "keep_last",
)
"""Settings that may change between the parts of a run: they shape neither the weights nor the order."""


_STARTED_FROM = "started_from.json"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Attributes:
        folder: Run folder (log.csv, curves.png, sheets/, last.ckpt).
        checkpoint: Exported checkpoint folder.
        batches_seen: Batches done, of all runs together.
        finished: Whether the last phase is complete.
        stopped_by: Why the run ended before, e.g. "the time limit"; "" when finished.
        requeued: Whether the job was put back into Slurm's queue (known to the first process).
        try_again: Whether the process should leave with ``EXIT_TRY_AGAIN``, so that its launcher starts it again.
    """

    folder: Path
    checkpoint: Path
    batches_seen: int
    finished: bool
    stopped_by: str
    requeued: bool = False
    try_again: bool = False


def training_class(method: str) -> Callable[..., PhasedModule]:
    """The training module that the registry names for a method.

    Raises:
        UnknownNameError: no such method.
        InputError: the method is not trained.
    """
    info = method_info(method)
    if not info.training:
        raise InputError(f"{method} is not a method that is trained")
    module, _, name = info.training.partition(":")
    cls = getattr(importlib.import_module(module), name)
    return cast(Callable[..., PhasedModule], cls)


def train(
    recipe_path: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    max_minutes: float | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    overwrite: bool = False,
    wandb: bool = False,
    wandb_sheets: bool = False,
    init_from: str | Path | None = None,
    init_networks: Sequence[str] = (),
    requeue: bool = False,
    prepare_only: bool = False,
) -> RunResult:
    """Trains a recipe, or goes on with the run that lies in the output folder.

    Args:
        recipe_path: YAML file.
        output: Run folder; ``runs/<name>`` when None.
        overrides: ``key=value`` changes of the recipe.
        max_minutes: Stop after this time with everything saved; the same command goes on later.
        accelerator: Lightning's accelerator ("auto", "cpu", "gpu").
        devices: Processes on this machine.
        nodes: Machines.
        overwrite: Start anew although the folder has a run.
        wandb: Log to Weights & Biases too (its own WANDB_MODE=offline works): numbers, recipe and lineage.
        wandb_sheets: Upload the sample sheets as well. They show faces of the training set.
        init_from: Checkpoint folder whose networks a *new* run starts from; of another method too.
        init_networks: The networks that are taken from it; all that both have when empty.
        requeue: Ask for another go when stopped before the end: Slurm puts the job back into its queue; elsewhere the
            result says ``try_again``.
        prepare_only: Only add to the packed sets what training needs (identity vectors, say), and stop.

    Returns:
        Where everything lies.

    Raises:
        InputError: recipe or data that cannot be used.
        CheckpointError: the folder holds a run of another configuration, or a broken checkpoint.
        OutputError: the folder cannot be written.
    """
    _check_machine(accelerator, devices, nodes, max_minutes)
    launch = find_launch()
    check_launch(launch, devices, nodes, overwrite=overwrite)
    recipe = load_recipe(recipe_path, overrides)
    folder = Path(output) if output is not None else Path("runs") / recipe.name
    settings = recipe.train
    cls = training_class(recipe.method)
    try:
        module = cls(recipe.config, seed=settings.seed)
    except ValueError as error:
        raise InputError(f"{Path(recipe_path).name}: config: {error}") from error
    if settings.batch_size % min(settings.batch_size, module.batch_group):
        raise InputError(
            f"a batch of {settings.batch_size} pictures a process does not divide into the {module.batch_group} of "
            "minibatch_std_group: change train.batch_size"
        )
    paths = [Path(path) for path in recipe.data]
    device = _own_device(accelerator)
    if prepare_only:
        if launch.world_size > 1:
            raise InputError("--prepare-only is for one process: run it without torchrun or srun")
        module.prepare_data_files(paths, device)
        return RunResult(folder, folder / "checkpoint", 0, False, "--prepare-only")
    resume = _prepare_folder(folder, recipe, overwrite)
    if resume:
        _check_resumable(folder / "last.ckpt")
    if module.starts_from and init_from is None and not resume:
        raise InputError(
            f"{recipe.name} works with networks that it does not train ({', '.join(module.starts_from)}): name the "
            "checkpoint that they come from with --init-from; the recipe's header says which"
        )
    require_prepared(launch, paths, module.data_fields)
    module.prepare_data_files(paths, device)
    data = PackedBatches(paths, module.picture_size, module.data_fields)
    module.setup_data(data)
    if init_from is not None and not resume:
        _start_from(module, Path(init_from), init_networks, folder)
    module.frozen = _frozen(module, settings.freeze, folder)
    module.decay_share = settings.decay_share
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)
    if settings.compile:
        for network in module.networks().values():
            network.compile()

    tracking = Tracking(folder, recipe, sheets=wandb_sheets) if wandb else None
    world = devices * nodes
    ema = NetworkEMA(module.shipped, settings.ema_decay)
    log = RunLog(folder, settings.log_every_batches, settings.batch_size)
    shown = data.__getitems__([round(i * (len(data) - 1) / _SHEET_FACES) for i in range(_SHEET_FACES)])
    sheets = SampleSheets(folder, settings.sheet_every_batches, shown, ema)
    preemption = Preemption(folder / "last.ckpt", settings.save_every_minutes, max_minutes)
    early = _early_stop(settings, module, paths, device, ema)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        # Several optimizers over toggled networks: every batch leaves some parameters without a gradient.
        strategy=DDPStrategy(find_unused_parameters=True) if world > 1 else "auto",
        precision=settings.precision,
        # No limit: each stop in the middle of a tick costs an epoch, so any number of them can run out before the
        # batches do. EndOfPhases ends the run.
        max_epochs=-1,
        limit_train_batches=settings.tick_batches,
        logger=tracking.logger if tracking is not None else False,
        # Preemption comes last: what it saves must include this batch's average and log.
        callbacks=[
            ema,
            log,
            *([early] if early is not None else []),
            sheets,
            *([tracking] if tracking is not None else []),
            EndOfPhases(),
            preemption,
        ],
        plugins=[SLURMEnvironment(auto_requeue=False)] if launch.by == "slurm" else None,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sampler_rank = trainer.global_rank
    sampler = StepSampler(
        len(data), settings.batch_size, world, sampler_rank, settings.seed, lambda: module.batches_seen
    )
    loader = DataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=as_batch,
        num_workers=settings.loader_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=settings.loader_workers > 0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*resume training from.*")
        warnings.filterwarnings("ignore", message=".*find_unused_parameters=True was specified.*")
        try:
            trainer.fit(
                module,
                loader,
                ckpt_path=str(folder / "last.ckpt") if resume else None,
                weights_only=True if resume else None,
            )
        except RuntimeError as error:
            if resume and ("checkpoint" in str(error).lower() or "state_dict" in str(error)):
                raise CheckpointError(
                    f"{folder / 'last.ckpt'} cannot be resumed: {str(error).splitlines()[0]}"
                ) from error
            raise
    preemption.save(trainer)
    checkpoint = folder / "checkpoint"
    if trainer.is_global_zero:
        sheets.write(module)
        export(recipe, module, ema, checkpoint)
        if early is not None:
            looks = json.dumps(early.looks, indent=1) + "\n"
            atomic_write(folder / "held_out.json", looks.encode("ascii"), overwrite=True)
        if tracking is not None:
            tracking.finish(checkpoint)
    finished = module.batches_seen >= module.total_batches
    if finished or not requeue:
        return RunResult(folder, checkpoint, module.batches_seen, finished, "" if finished else preemption.stopped_by)
    # Last of all: Slurm ends the job's processes with it. All of them have written what they had to.
    under_slurm = "SLURM_JOB_ID" in os.environ
    if under_slurm and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's, for what is left of this start: it ends by itself now
    requeued = under_slurm and trainer.is_global_zero and requeue_slurm_job()
    return RunResult(
        folder, checkpoint, module.batches_seen, False, preemption.stopped_by, requeued, try_again=not under_slurm
    )


def _own_device(accelerator: str) -> torch.device:
    """Where this process prepares its data: the GPU that Lightning will give it, if any."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return torch.device("cuda", local % torch.cuda.device_count())


def export(recipe: Recipe, module: PhasedModule, ema: NetworkEMA, checkpoint: Path) -> None:
    """Writes the averaged networks as a checkpoint folder, weights in half precision.

    Args:
        recipe: What was trained.
        module: The training module.
        ema: Its averages.
        checkpoint: Folder to write; a checkpoint of an earlier part of the run is replaced.
    """
    states = {name: _halved(state) for name, state in ema.state_dicts().items()}
    variants = {}
    if recipe.train.keep_last:
        networks = module.networks()
        variants["last"] = {name: _halved(networks[name].state_dict()) for name in states}
    manifest = {
        "name": recipe.name,
        "method": recipe.method,
        "summary": recipe.summary,
        "status": "experimental",
        "training": {
            "recipe": dataclasses.asdict(recipe),
            "batches": module.batches_seen,
            "phases": {phase.name: phase.batches for phase in module.phases},
            "facezoo_version": __version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
            if not torch.cuda.is_available()
            else torch.cuda.get_device_name(0),
            **_started_from(checkpoint.parent),
        },
        **module.manifest_entries(),
    }
    write_checkpoint(checkpoint, json.loads(json.dumps(manifest)), states, overwrite=True, variants=variants)


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.dtype == torch.float32 else value for key, value in state.items()}


def _frozen(module: PhasedModule, preset: str, folder: Path) -> dict[str, frozenset[str]]:
    """Parameters that stay, of the networks that a checkpoint brought (remembered beside the run, for its resumes)."""
    if preset == "none":
        return {}
    brought = _started_from(folder).get("started_from", {}).get("networks", ())
    if not brought:
        raise InputError(f"train.freeze={preset} keeps layers of a trained model: name it with --init-from")
    networks = module.networks()
    return frozen_parameters({name: networks[name] for name in brought}, preset)


def _early_stop(
    settings: TrainConfig, module: PhasedModule, paths: Sequence[Path], device: torch.device, ema: NetworkEMA
) -> EarlyStop | None:
    """The callback that looks at held-out pictures, where the recipe asks for it."""
    if not settings.patience:
        return None
    if module.labels_by_index:
        raise InputError(f"{type(module).__name__} cannot look at held-out pictures; leave out train.patience")
    held_out = Path(settings.held_out)
    if held_out in paths:
        raise InputError(f"{held_out} is both trained on and held out; give another train.held_out")
    module.prepare_data_files([held_out], device)
    data = PackedBatches([held_out], module.picture_size, module.data_fields)
    size = min(settings.batch_size, len(data))
    starts = range(0, min(len(data), _LOOK_FACES) - size + 1, size)
    batches = [as_batch(data.__getitems__(list(range(start, start + size)))) for start in starts]
    return EarlyStop(batches, settings.look_every_batches, settings.patience, ema)


def _prepare_folder(folder: Path, recipe: Recipe, overwrite: bool) -> bool:
    """Makes the run folder; says whether there is a run to go on with."""
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    state = folder / "recipe.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if state.exists() and (folder / "last.ckpt").exists() and not overwrite:
            there = _read_state(state)
            # A run of an older facezoo lacks the settings that are newer: it had what is now their default.
            there["train"] = dataclasses.asdict(TrainConfig()) | there["train"]
            # Lengths, cadence and paths may change between parts of a run; what shapes weights and order may not.
            for part in (wanted, there):
                for name in _FREE_SETTINGS:
                    part["train"].pop(name, None)
                part["config"] = {k: v for k, v in part["config"].items() if not k.endswith("_batches")}
                part.pop("data"), part.pop("summary")
            if wanted != there:
                raise CheckpointError(
                    f"{folder} holds a run with another configuration ({_difference(there, wanted)}); "
                    "choose another --output, or --overwrite to start anew"
                )
        elif overwrite:
            for old in ("last.ckpt", "log.csv", _STARTED_FROM):
                (folder / old).unlink(missing_ok=True)
        text = json.dumps(dataclasses.asdict(recipe), indent=2) + "\n"
        atomic_write(state, text.encode("ascii"), overwrite=True)
    except OSError as error:
        raise OutputError(f"cannot write the run folder {folder}: {error.strerror}") from error
    return (folder / "last.ckpt").exists()


def _read_state(state: Path) -> dict[str, Any]:
    try:
        there = json.loads(state.read_text(encoding="utf-8"))
        fields = {field.name for field in dataclasses.fields(Recipe)}
        if not isinstance(there, dict) or set(there) != fields:
            raise ValueError("not a recipe")
    except ValueError as error:
        raise CheckpointError(f"{state} is damaged; choose another --output, or --overwrite to start anew") from error
    return there


def _check_machine(accelerator: str, devices: int, nodes: int, max_minutes: float | None) -> None:
    """Refuses before anything is read or written what Lightning would refuse in many lines."""
    if accelerator not in ("auto", "cpu", "gpu"):
        raise InputError(f"there is no accelerator {accelerator!r}; choose auto, cpu or gpu")
    if devices < 1 or nodes < 1:
        raise InputError(f"devices and nodes must be at least 1, not {devices} and {nodes}")
    if max_minutes is not None and not max_minutes >= 0:
        raise InputError(f"max_minutes must not be negative, not {max_minutes}")
    found = torch.cuda.device_count() if accelerator != "cpu" and torch.cuda.is_available() else 0
    if accelerator == "gpu" and not found:
        raise InputError("there is no CUDA device here; use --accelerator cpu, or install a torch build for the GPU")
    if found and devices > found:
        raise InputError(f"{devices} devices were asked for and this machine has {found}; use --devices {found}")


def _check_resumable(path: Path) -> None:
    """Looks into the checkpoint of an earlier part before Lightning does, whose errors name neither file nor remedy."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content["facezoo"]["batches_seen"], content["facezoo_ema"], content["state_dict"]
    except Exception as error:  # zip, pickle and missing keys each raise their own
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of facezoo; choose another --output, or --overwrite to start anew"
        ) from error


def _difference(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    parts = []
    for key in wanted.keys() | there.keys():
        a, b = there.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            parts += [
                f"{key}.{k}: {a.get(k)} -> {b.get(k)}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)
            ]
        elif a != b:
            parts.append(f"{key}: {a} -> {b}")
    return "; ".join(parts[:3])


def _start_from(module: PhasedModule, checkpoint: Path, wanted: Sequence[str], folder: Path) -> None:
    """Starts a new run from the networks of a checkpoint and writes down which, for the manifest.

    Networks that the checkpoint lacks, or that are not ``wanted``, stay as they are.
    """
    from facezoo.hub.manifest import load_networks, load_strictly, read_manifest, verify_files

    manifest, checksum = read_manifest(checkpoint)
    verify_files(checkpoint, manifest)
    networks: dict[str, nn.Module] = dict(module.networks())
    states = load_networks(checkpoint, manifest)
    both = [name for name in states if name in networks]
    if unknown := [name for name in wanted if name not in both]:
        raise InputError(
            f"{', '.join(unknown)}: not a network that {checkpoint} and the recipe share; choose from {', '.join(both)}"
        )
    taken = [name for name in both if name in wanted or not wanted]
    if not taken:
        raise InputError(f"{checkpoint} has no network that this recipe could start from")
    if missing := [name for name in module.starts_from if name not in taken]:
        raise InputError(f"{checkpoint} must give {', '.join(missing)} too, which this recipe does not train")
    for name in taken:
        load_strictly(networks[name], states[name], f"{checkpoint}/{name}")
    note = {"name": manifest["name"], "checksum": checksum, "networks": taken}
    atomic_write(folder / _STARTED_FROM, (json.dumps(note, indent=2) + "\n").encode("ascii"), overwrite=True)


def _started_from(folder: Path) -> dict[str, Any]:
    """The manifest's entry about the checkpoint that a run started from; empty for one that started from nothing."""
    path = folder / _STARTED_FROM
    return {"started_from": json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
