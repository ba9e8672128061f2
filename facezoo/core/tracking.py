"""A run in Weights & Biases: numbers, recipe and where its weights come from and go to. No pictures unless asked.

Sample sheets show faces of the training set, so they are uploaded only with ``--wandb-sheets``. Weights are never
uploaded: what is kept of a checkpoint is its name and the SHA-256 of its manifest, so that a run can be followed from
the checkpoint that it started from to the one that it made. Neither are paths of this machine, nor the command line,
nor the code: wandb would take them by itself, and it is told not to.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import Callback

from facezoo.core.phases import phased
from facezoo.core.recipe import Recipe
from facezoo.errors import InputError

__all__ = ["Tracking", "shown_recipe"]

_PATHS: Final = ("/", "\\", "~", ".")


def shown_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it may leave this machine: files by their names only."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [shown(inner) for inner in value]
        if isinstance(value, str) and (value.startswith(_PATHS) or "/" in value):
            return Path(value).name
        return value

    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    # The summary is a sentence: a stroke in it is no path.
    return {key: value if key == "summary" else shown(value) for key, value in plain.items()}


_SILENT: Final[dict[str, Any]] = {
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "console": "off",
    "host": "-",
    "program": "facezoo train",
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""No code, output, host, user, command line, paths: they tell who trains and where. Releases differ in the x_ ones."""


class Tracking(Callback):
    """Owns the logger of a run.

    Args:
        folder: run folder; wandb keeps its files in it.
        recipe: what is trained.
        sheets: upload the sample sheets.

    Raises:
        InputError: wandb is not installed.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, sheets: bool = False) -> None:
        try:
            import wandb
            from lightning.pytorch.loggers import WandbLogger
        except ImportError as error:
            raise InputError("logging to wandb needs the package: pip install 'facezoo[train]'") from error
        self.wandb: Any = wandb
        self.folder, self.sheets = folder, sheets
        self._sent: set[str] = {path.name for path in (folder / "sheets").glob("*.png")}
        known = wandb.Settings.model_fields
        settings = wandb.Settings(**{name: value for name, value in _SILENT.items() if name in known})
        self.logger = WandbLogger(
            project="facezoo",
            name=recipe.name,
            save_dir=str(folder),
            config=shown_recipe(recipe),
            log_model=False,
            settings=settings,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says which checkpoint the run started from."""
        note = self.folder / "started_from.json"
        if trainer.is_global_zero and note.exists():
            told = json.loads(note.read_text(encoding="utf-8"))
            self.logger.experiment.config.update({"started_from": told}, allow_val_change=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Uploads sheets that are new, where that was asked for."""
        if not self.sheets or not trainer.is_global_zero:
            return
        for path in sorted((self.folder / "sheets").glob("*.png")):
            if path.name not in self._sent:
                self._sent.add(path.name)
                picture = self.wandb.Image(str(path))
                self.logger.experiment.log({"sheet": picture}, step=phased(pl_module).batches_seen)

    def finish(self, checkpoint: Path) -> None:
        """Says which checkpoint came out, and closes the run (or the next one of this process would go on with it)."""
        from facezoo.hub.manifest import read_manifest

        manifest, digest = read_manifest(checkpoint)
        made = {
            "name": manifest["name"],
            "manifest_sha256": digest,
            "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
        }
        self.logger.experiment.config.update({"checkpoint": made}, allow_val_change=True)
        self.logger.experiment.finish()
