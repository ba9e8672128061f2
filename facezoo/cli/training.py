"""``facezoo prepare``, ``label``, ``train``, ``directions`` and ``clusters``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from facezoo.cli.common import Commands, add_command, import_part, minutes, names, positive
from facezoo.errors import InputError


def add_prepare(commands: Commands) -> None:
    """The command ``prepare`` and its options."""
    parser = add_command(
        commands,
        "prepare",
        "detect, align and pack a folder of pictures for training",
        "  facezoo prepare photos/ -o packed/photos.safetensors\n"
        "  facezoo prepare people/ -o packed/people.safetensors --size 128",
        " Sub-folders may name people. What was left out, and why, is reported. Can be interrupted and repeated.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="pictures, optionally in one sub-folder per person")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="packed set (.safetensors)")
    parser.add_argument("--size", type=positive, default=128, help="side of the crops (default: 128)")
    parser.add_argument("--detector", default="yunet", metavar="NAME", help="default: yunet")
    parser.add_argument(
        "--identity",
        choices=("subfolder", "file"),
        default="subfolder",
        help="whose face it is: the first sub-folder's name (default), or every face a person of its own",
    )
    parser.add_argument(
        "--faces",
        choices=("largest", "all"),
        default="largest",
        help="largest face of a picture (default), or all (with --identity file)",
    )
    parser.add_argument("--min-face", type=positive, default=40, metavar="PIXELS", help="smaller faces are left out")
    parser.add_argument("--source", default="", metavar="TEXT", help="where the pictures come from, and their rights")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes beside this one (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing set")
    parser.set_defaults(command=_prepare)


def add_label(commands: Commands) -> None:
    """The command ``label`` and its options."""
    parser = add_command(
        commands,
        "label",
        "add attribute labels to a packed set",
        "  facezoo label packed/mine.safetensors --csv labels.csv\n  facezoo label packed/mine.safetensors --measure",
        " The csv has a column 'file' and one for each attribute (sex, hair, ...). --measure takes hair and skin "
        "colour from the pixels and fills the rest by a probe; their source and agreement are kept in the set.",
    )
    parser.add_argument("set", metavar="FILE", help="packed set (.safetensors); replaced when all is done")
    parser.add_argument("--csv", metavar="FILE", help="your own labels, a row for every picture")
    parser.add_argument("--measure", action="store_true", help="measure what can be measured")
    parser.set_defaults(command=_label)


def add_directions(commands: Commands) -> None:
    """The command ``directions`` and its options."""
    parser = add_command(
        commands,
        "directions",
        "fit directions of attributes in a model's latent space (sdn, mfm)",
        "  facezoo directions runs/sdn.faces64/checkpoint --data packed/train128.safetensors -o edited/\n"
        "  facezoo anonymize a.jpg -o b.png --model edited/ --option edit=smiling=+2 --key-file my.key",
        " PCA and a linear support vector machine on the bottleneck, a direction for each attribute with two values; "
        "writes a copy of the checkpoint that has them, and a sheet of degrees -2 to +2.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set with labels")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="new checkpoint folder")
    parser.add_argument("--limit", type=positive, default=600, metavar="N", help="pictures to use (default: 600)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.set_defaults(command=_directions)


def add_clusters(commands: Commands) -> None:
    """The command ``clusters`` and its options."""
    parser = add_command(
        commands,
        "clusters",
        "plot a model's latent space: PCA, t-SNE and the way between cluster centres (mfm, sdn)",
        "  facezoo clusters runs/mfm.faces64/checkpoint --data packed/train128.safetensors -o plots/ --attribute hair",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set with labels")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where clusters.png and between.png go")
    parser.add_argument("--attribute", required=True, metavar="NAME", help="attribute whose values are the clusters")
    parser.add_argument("--limit", type=positive, default=400, metavar="N", help="pictures to use (default: 400)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing plots")
    parser.set_defaults(command=_clusters)


def add_train(commands: Commands) -> None:
    """The command ``train`` and its options."""
    parser = add_command(
        commands,
        "train",
        "train a model from a recipe",
        "  facezoo train recipes/identity_rotation/faces128_cpu.yaml --max-minutes 60\n"
        "  facezoo train recipe.yaml --output runs/mine --set data=packed/mine.safetensors --set train.batch_size=8",
        " Run the same command again to go on where it stopped. Ends in a checkpoint that --model takes.",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file, or one that ships, such as identity_rotation/faces128_cpu"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="run folder (default: runs/<recipe's name>)")
    parser.add_argument("--max-minutes", type=minutes, metavar="M", help="stop (and save) after this time")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change a value, e.g. data=FILE",
    )
    parser.add_argument(
        "--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="where it runs (default: auto)"
    )
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="processes on this machine")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines")
    parser.add_argument(
        "--requeue",
        action="store_true",
        help="stopped before the end (signal, time limit): put the Slurm job back into its queue; under torchrun and "
        "Kubernetes leave with exit code 75, so that it is started again",
    )
    parser.add_argument(
        "--prepare-only",
        action="store_true",
        help="only complete the data (identity vectors); once, before several processes train on it",
    )
    parser.add_argument("--init-from", metavar="MODEL", help="model or checkpoint folder that a new run starts from")
    parser.add_argument(
        "--init-networks",
        type=names,
        default=(),
        metavar="A,B",
        help="take only these networks from it, e.g. code_encoder,code_embedder,code_extractor",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew although the folder holds a run")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases too (WANDB_MODE=offline works)")
    parser.add_argument(
        "--wandb-sheets", action="store_true", help="upload the sample sheets too: they show faces of the training set"
    )
    parser.set_defaults(command=_train)


def _prepare(arguments: argparse.Namespace) -> int:
    from facezoo.data.prepare import prepare, print_summary

    report = prepare(
        arguments.folder,
        arguments.output,
        size=arguments.size,
        detector=arguments.detector,
        identity=arguments.identity,
        faces=arguments.faces,
        min_face=arguments.min_face,
        source=arguments.source,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty(),
    )
    print_summary(report)
    return 0


def _label(arguments: argparse.Namespace) -> int:
    from facezoo.data.labelling import label_set

    for name, source in label_set(arguments.set, table=arguments.csv, measure=arguments.measure).items():
        agreed = "" if source.agreement is None else f", agreement {source.agreement:.1%} of {source.compared}"
        print(f"{name}: {source.known:.1%} labelled{agreed}; {source.source}")
    return 0


def _directions(arguments: argparse.Namespace) -> int:
    from facezoo.latent import fit_directions

    for name, share in fit_directions(
        arguments.model, arguments.data, arguments.output, limit=arguments.limit, overwrite=arguments.overwrite
    ).items():
        print(f"{name}: the direction separates {share:.1%} of held-out pictures")
    print(f"checkpoint: {arguments.output}")
    return 0


def _clusters(arguments: argparse.Namespace) -> int:
    from facezoo.latent import plot_clusters

    for path in plot_clusters(
        arguments.model,
        arguments.data,
        arguments.output,
        attribute=arguments.attribute,
        limit=arguments.limit,
        overwrite=arguments.overwrite,
    ):
        print(path)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from facezoo.core.launch import EXIT_TRY_AGAIN
    from facezoo.hub.manifest import resolve_model

    run = import_part("facezoo.core.run", "training", "train")
    init_from = arguments.init_from
    if arguments.init_networks and init_from is None:
        raise InputError("--init-networks names parts of a checkpoint; say which one with --init-from")
    if init_from is not None and not Path(init_from).is_dir():
        init_from = resolve_model(init_from).folder
        if init_from is None:
            raise InputError(f"{arguments.init_from} has no weights to start from; name a checkpoint (facezoo list)")
    result = run.train(
        arguments.recipe,
        output=arguments.output,
        overrides=tuple(arguments.overrides),
        max_minutes=arguments.max_minutes,
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        nodes=arguments.nodes,
        overwrite=arguments.overwrite,
        wandb=arguments.wandb or arguments.wandb_sheets,
        wandb_sheets=arguments.wandb_sheets,
        init_from=init_from,
        init_networks=arguments.init_networks,
        requeue=arguments.requeue,
        prepare_only=arguments.prepare_only,
    )
    if arguments.prepare_only:
        print("the data are complete: several processes can train on them now")
        return 0
    ended = "finished" if result.finished else f"stopped by {result.stopped_by}; the same command goes on"
    print(f"{result.folder}: {result.batches_seen} batches, {ended}")
    print(f"checkpoint: {result.checkpoint}")
    if result.requeued:
        print("the job is back in Slurm's queue")
    return EXIT_TRY_AGAIN if result.try_again else 0
