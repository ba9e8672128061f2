"""What a run shows and keeps besides its checkpoint: progress, log, curves, sheets, the end of the phases."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from facezoo.core.ema import NetworkEMA
from facezoo.core.phases import PhasedModule, phased
from facezoo.core.sheets import save_curves, save_sheet


class RunLog(Callback):
    """Progress bar, ``log.csv``, the trainer's loggers, ``curves.png``; means over ``every`` batches.

    Args:
        folder: Run folder.
        every: Batches between lines.
        batch_size: Pictures a batch and process, for the throughput.
    """

    def __init__(self, folder: Path, every: int, batch_size: int) -> None:
        self.path, self.every, self.batch_size = folder / "log.csv", every, batch_size
        self.curves = folder / "curves.png"
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the bar and drops lines of the log that lie after the checkpoint (a run that was killed)."""
        module = phased(pl_module)
        self._since, self._batches = time.monotonic(), 0
        if not trainer.is_global_zero:
            return
        self._bar = tqdm(
            total=module.total_batches,
            initial=module.batches_seen,
            unit="batch",
            dynamic_ncols=True,
            smoothing=0.05,
        )
        if self.path.exists():
            with self.path.open(newline="") as stream:
                reader = csv.DictReader(stream)
                rows = [row for row in reader if int(row["batch"]) <= module.batches_seen]
                names = list(reader.fieldnames or [])
            self._rewrite(names, rows)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Adds up the batch's values; every ``every`` batches writes their means."""
        module = phased(pl_module)
        self._batches += 1
        for name, value in module.last_logs.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        if self._bar is not None:
            self._bar.update(1)
        if module.batches_seen % self.every == 0:
            self._write(trainer, module)

    def _write(self, trainer: L.Trainer, pl_module: PhasedModule) -> None:
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        seconds = time.monotonic() - self._since
        means["pictures_per_second"] = self._batches * self.batch_size * trainer.world_size / max(seconds, 1e-9)
        self._sums, self._counts, self._batches, self._since = {}, {}, 0, time.monotonic()
        for logger in trainer.loggers:
            logger.log_metrics(means, step=pl_module.batches_seen)
        if not trainer.is_global_zero:
            return
        row = {"batch": pl_module.batches_seen, **means}
        names = list(row)
        if self.path.exists():
            with self.path.open(newline="") as stream:
                reader = csv.DictReader(stream)
                known = list(reader.fieldnames or [])
                if set(names) - set(known):  # a new phase brings new columns
                    self._rewrite([*known, *(n for n in names if n not in known)], list(reader))
                    known = [*known, *(n for n in names if n not in known)]
            names = known
        else:
            self._rewrite(names, [])
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, names).writerow(row)
        if self._bar is not None:
            self._bar.set_postfix({n.rpartition("/")[2]: f"{v:.3f}" for n, v in means.items()}, refresh=False)

    def _rewrite(self, names: list[str], rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_name(self.path.name + ".part")
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the curves and closes the bar."""
        if trainer.is_global_zero and self.path.exists():
            save_curves(self.path, self.curves)
        if self._bar is not None:
            self._bar.close()


class SampleSheets(Callback):
    """Writes ``sheets/batch_XXXXXXX.png`` with the averaged networks, on the same few faces each time.

    Args:
        folder: Run folder.
        every: Batches between sheets.
        batch: The faces to show, as a training batch.
        ema: Where the averaged networks are.
    """

    def __init__(self, folder: Path, every: int, batch: dict[str, Tensor], ema: NetworkEMA) -> None:
        self.folder, self.every, self.batch, self.ema = folder / "sheets", every, batch, ema

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Writes a sheet when it is time."""
        module = phased(pl_module)
        if trainer.is_global_zero and module.batches_seen % self.every == 0:
            self.write(module)

    def write(self, module: PhasedModule) -> None:
        """Writes a sheet now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        batch = {name: value.to(module.device) for name, value in self.batch.items()}
        rows = module.sample_sheet(batch, self.ema.shadow)
        caption = f"batch {module.batches_seen}, {module.locate(module.batches_seen)[0].name}, averaged weights"
        save_sheet(self.folder / f"batch_{module.batches_seen:07d}.png", rows, caption)
        if self.folder.with_name("log.csv").exists():
            save_curves(self.folder.with_name("log.csv"), self.folder.with_name("curves.png"))


class EndOfPhases(Callback):
    """Ends the fit after the last batch of the last phase, wherever in a tick that is."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Asks for the stop."""
        module = phased(pl_module)
        if module.batches_seen >= module.total_batches:
            trainer.should_stop = True
