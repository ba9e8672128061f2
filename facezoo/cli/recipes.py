"""``facezoo recipes list``, ``copy`` and ``validate``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from facezoo.cli.common import Commands, add_command, import_part
from facezoo.errors import InputError


def add_recipes(commands: Commands) -> None:
    """The command ``recipes`` and its actions."""
    parser = add_command(
        commands,
        "recipes",
        "list, copy and check the recipes of training",
        "  facezoo recipes list\n"
        "  facezoo recipes copy identity_rotation/faces128_cpu mine.yaml\n"
        "  facezoo recipes validate mine.yaml --set train.batch_size=8",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = add_command(actions, "list", "list the recipes that ship", "  facezoo recipes list --json")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(command=_list)
    copying = add_command(
        actions,
        "copy",
        "copy a recipe to a file of your own",
        "  facezoo recipes copy sdn/faces64_cpu mine.yaml",
        " Every field is written with what it means, those at their default too; --plain copies the file as it is.",
    )
    copying.add_argument("recipe", metavar="RECIPE", help="a recipe that ships, or a file")
    copying.add_argument("output", metavar="FILE", help="new file (or an existing folder)")
    copying.add_argument("--plain", action="store_true", help="as it is")
    copying.add_argument("--overwrite", action="store_true", help="replace an existing file")
    copying.set_defaults(command=_copy)
    checking = add_command(
        actions,
        "validate",
        "check recipes without training",
        "  facezoo recipes validate mine.yaml\n  facezoo recipes validate --all",
        " Unknown keys and values of a wrong type or out of range are errors.",
    )
    checking.add_argument("recipes", nargs="*", metavar="RECIPE", help="recipes that ship, or files")
    checking.add_argument("--all", action="store_true", help="every recipe that ships")
    checking.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="as in train"
    )
    checking.set_defaults(command=_validate)


def _list(arguments: argparse.Namespace) -> int:
    recipes = import_part("facezoo.core.recipe_files", "training", "train").list_recipes()
    if arguments.json:
        print(json.dumps([vars(recipe) for recipe in recipes], indent=2))
        return 0
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name.ljust(width)}  {recipe.summary}")
        if recipe.cost:
            print(f"{' ' * width}  cost: {recipe.cost}")
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    files = import_part("facezoo.core.recipe_files", "training", "train")
    path = files.copy_recipe(
        arguments.recipe, Path(arguments.output), plain=arguments.plain, overwrite=arguments.overwrite
    )
    print(f"{path}: train it with facezoo train {path}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    files = import_part("facezoo.core.recipe_files", "training", "train")
    if bool(arguments.recipes) == arguments.all:
        raise InputError("name the recipes to check, or --all")
    names = [recipe.name for recipe in files.list_recipes()] if arguments.all else arguments.recipes
    for name in names:
        recipe = files.validate_recipe(name, tuple(arguments.overrides))
        absent = [path for path in recipe.data if not Path(path).is_file()]
        print(f"ok  {name} ({recipe.name})" + (f"; not here yet: {', '.join(absent)}" if absent else ""))
    return 0
