"""``facezoo shards``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from facezoo.cli.common import Commands, add_command, positive

if TYPE_CHECKING:
    from facezoo.data.shards import ShardedFaces


def add_shards(commands: Commands) -> None:
    """The command ``shards`` and its sub-commands."""
    parser = add_command(
        commands,
        "shards",
        "write and index tar shards of aligned faces, for training on data that many machines share",
        "  facezoo shards pack packed/train128.safetensors -o shards/train128/\n"
        "  facezoo shards index shards/theirs/\n"
        "  facezoo shards check shards/train128/\n"
        "  facezoo train recipe.yaml --set data=shards/train128/",
        " A folder of shards stands wherever a packed set does, and training visits both in the same order.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    pack = actions.add_parser("pack", help="write a packed set as shards")
    pack.add_argument("set", metavar="FILE", help="packed set (.safetensors)")
    pack.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the shards go")
    pack.add_argument("--shard-mb", type=positive, default=256, metavar="MB", help="size of a shard (default: 256)")
    pack.add_argument(
        "--encoding",
        choices=("npy", "png"),
        default="npy",
        help="npy: nothing to decode (default); png: smaller, costs processor time",
    )
    pack.add_argument("--overwrite", action="store_true", help="replace the shards that are there")
    pack.set_defaults(command=_pack)
    index = actions.add_parser("index", help="make the index of tar files of aligned faces (WebDataset's layout)")
    index.add_argument("folder", metavar="FOLDER", help="folder of tar files")
    index.add_argument("--source", default="", metavar="TEXT", help="where the pictures come from, and their rights")
    index.add_argument("--overwrite", action="store_true", help="replace the index that is there")
    index.set_defaults(command=_index)
    check = actions.add_parser("check", help="read every picture once, against its checksum")
    check.add_argument("folder", metavar="FOLDER", help="folder of shards")
    check.set_defaults(command=_check)


def _pack(arguments: argparse.Namespace) -> int:
    from facezoo.data.shards import pack_shards

    return _say(
        pack_shards(
            arguments.set,
            arguments.output,
            shard_bytes=arguments.shard_mb << 20,
            encoding=arguments.encoding,
            overwrite=arguments.overwrite,
        )
    )


def _index(arguments: argparse.Namespace) -> int:
    from facezoo.data.shards import index_shards

    return _say(index_shards(arguments.folder, source=arguments.source, overwrite=arguments.overwrite))


def _check(arguments: argparse.Namespace) -> int:
    from facezoo.data.shards import check_shards

    return _say(check_shards(arguments.folder))


def _say(faces: ShardedFaces) -> int:
    print(
        f"{faces.folder}: {len(faces)} pictures of {len(faces.identities)} people, size {faces.size}, "
        f"in {len(faces.shards)} shards"
    )
    return 0
