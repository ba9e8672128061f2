"""``facezoo download`` and ``publish``."""

from __future__ import annotations

import argparse
from pathlib import Path

from facezoo.cli.common import Commands, add_command, positive
from facezoo.errors import InputError


def add_download(commands: Commands) -> None:
    """The command ``download`` and its options."""
    parser = add_command(
        commands,
        "download",
        "bring models here and check every file",
        "  facezoo download org/name@COMMIT\n  facezoo download --all\n  facezoo download org/name -o models/name",
        " Prints the commit, so that it can be pinned. HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN hold.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model of 'facezoo list', or org/name[@revision]")
    parser.add_argument("--all", action="store_true", help="every model with weights that this facezoo knows")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit (of one org/name)")
    parser.add_argument("--variant", default="", metavar="V", help="other weights than the averaged ones: last")
    parser.add_argument("--force", action="store_true", help="fetch again what is in the cache")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="also copy (one model) to this new folder")
    parser.set_defaults(command=_download)


def add_publish(commands: Commands) -> None:
    """The command ``publish`` and its options."""
    parser = add_command(
        commands,
        "publish",
        "check a checkpoint and push it to the Hugging Face hub",
        "  facezoo publish runs/mine --repo-id org/name --card card.yaml --dry-run\n"
        "  facezoo publish runs/mine --repo-id org/name --private --evaluation evaluated/evaluation.json",
        " Nothing is sent before all checks pass; everything arrives in one commit. The token is that of HF_TOKEN or "
        "of `hf auth login`.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint folder or bundled model")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="repository; made when it does not exist")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--dry-run", action="store_true", help="everything but the network")
    parser.add_argument("--card", metavar="FILE", help="YAML with card, licences, paper, summary, version, status")
    parser.add_argument("--evaluation", metavar="FILE", help="evaluation.json of this checkpoint")
    parser.add_argument("--data-licence", metavar="TEXT", help="rights of the pictures that it was trained on")
    parser.add_argument(
        "--part-size", type=positive, default=256, metavar="MB", help="cut files at this size (default: 256)"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="also leave what is pushed in this new folder")
    parser.set_defaults(command=_publish)


def _download(arguments: argparse.Namespace) -> int:
    from facezoo.hub.remote import download, downloadable

    if bool(arguments.names) == arguments.all:
        raise InputError("name the models to download, or --all")
    names = downloadable() if arguments.all else arguments.names
    if len(names) != 1 and (arguments.revision or arguments.output):
        raise InputError("--revision and --output are for one model")
    for name in names:
        done = download(
            name,
            revision=arguments.revision,
            variant=arguments.variant,
            force=arguments.force,
            output=Path(arguments.output) if arguments.output else None,
        )
        pin = f", pin it with {name.partition('@')[0]}@{done.commit}" if done.commit else ""
        print(
            f"{done.name}: {done.bytes / 1e6:.1f} MB in {done.transfer_seconds:.1f} s, "
            f"hashes checked in {done.verify_seconds:.2f} s{pin}"
        )
        print(f"  {done.folder}")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from facezoo.hub.publish import publish

    done = publish(
        arguments.run,
        arguments.repo_id,
        private=arguments.private,
        dry_run=arguments.dry_run,
        card=Path(arguments.card) if arguments.card else None,
        evaluation=Path(arguments.evaluation) if arguments.evaluation else None,
        data_licence=arguments.data_licence,
        part_bytes=arguments.part_size * 2**20,
        output=Path(arguments.output) if arguments.output else None,
    )
    for check in done.checks:
        print(f"ok  {check.name}")
    for name, size in done.files.items():
        print(f"{size:>12,}  {name}")
    if done.commit:
        print(f'pushed to {done.repository}; load it with facezoo.from_pretrained("{done.repository}@{done.commit}")')
    else:
        print(f"dry run: nothing was sent to {done.repository}")
    return 0
