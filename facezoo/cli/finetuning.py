"""``facezoo finetune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from facezoo.cli.common import Commands, add_command, import_part, minutes, part, positive, whole


def add_finetune(commands: Commands) -> None:
    """The command ``finetune`` and its options."""
    parser = add_command(
        commands,
        "finetune",
        "adapt a trained model to your own pictures, and measure it before and after",
        "  facezoo finetune identity_rotation.faces128 --data photos/ -o mine\n"
        "  facezoo finetune identity_rotation.faces128 --data photos/ -o mine --preset biases --max-minutes 20\n"
        "  facezoo anonymize a.jpg -o b.png --model mine/checkpoint --key-file my.key",
        " Run the same command again to go on where it stopped. See docs/finetune.md.",
    )
    parser.add_argument("model", metavar="NAME", help="a learned model, a checkpoint folder, or org/name")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="pictures (200 do), or a packed set")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where everything goes")
    parser.add_argument(
        "--preset",
        choices=("late", "biases", "none"),
        default="late",
        help="what stays frozen: the first half of the layers (late, default), all but biases and scales, or none",
    )
    parser.add_argument("--batches", type=positive, default=300, metavar="N", help="of training (default: 300)")
    parser.add_argument("--rate", type=part, default=0.25, metavar="R", help="part of the old learning rates (.25)")
    parser.add_argument(
        "--patience",
        type=whole,
        default=4,
        metavar="N",
        help="looks at held-out pictures without progress that end a phase (default: 4; 0: never)",
    )
    parser.add_argument("--held-out", type=part, default=0.2, metavar="P", help="part of the people kept for measuring")
    parser.add_argument("--faces", type=positive, default=60, metavar="N", help="measured, at most (default: 60)")
    parser.add_argument(
        "--identity",
        choices=("subfolder", "file"),
        default="subfolder",
        help="whose face it is: the first sub-folder's name (default), or every picture a person of its own",
    )
    parser.add_argument("--rights", default="", metavar="TEXT", help="where the pictures come from, for the card")
    parser.add_argument("--name", default="", metavar="METHOD.TAG", help="of the new model")
    parser.add_argument("--labels", default="", metavar="CSV", help="attributes of the pictures (sdn, mfm)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit (of org/name)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as in train")
    parser.add_argument("--max-minutes", type=minutes, metavar="M", help="stop the training (and save) after this time")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="default: auto")
    parser.add_argument("--overwrite", action="store_true", help="throw away another fine-tuning in the folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command=_finetune)


def _finetune(arguments: argparse.Namespace) -> int:
    import_part("facezoo.core.run", "training", "train")
    tuning = import_part("facezoo.finetune", "fine-tuning", "train,eval")
    settings = tuning.FineTuneSettings(
        freeze=arguments.preset,
        batches=arguments.batches,
        rate=arguments.rate,
        patience=arguments.patience,
        held_out=arguments.held_out,
        faces=arguments.faces,
        identity=arguments.identity,
        rights=arguments.rights,
        name=arguments.name,
        labels=arguments.labels,
        overrides=tuple(arguments.overrides),
    )
    done = tuning.finetune(
        arguments.model,
        Path(arguments.data),
        Path(arguments.output),
        settings,
        revision=arguments.revision,
        max_minutes=arguments.max_minutes,
        accelerator=arguments.accelerator,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
    )
    if not done.finished:
        print(f"{done.folder}: the time is up; the same command goes on")
        return 0
    print(done.table)
    print(f"checkpoint: {done.checkpoint}")
    print(f"card: {done.card}")
    return 0
