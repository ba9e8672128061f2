"""``facezoo generate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from facezoo.cli.common import Commands, add_command, output_folder, part, positive, progress_bar, whole
from facezoo.errors import InputError
from facezoo.tags import printable


def add_generate(commands: Commands) -> None:
    """The command ``generate`` and its options."""
    parser = add_command(
        commands,
        "generate",
        "make pictures of people who do not exist",
        "  facezoo generate --model stylegan2.faces64 -o people/ --count 16 --seed 1\n"
        "  facezoo generate --model stylegan2.faces64 -o people/ --count 100 --truncation 0.5 --sheet\n"
        "  facezoo generate --model runs/stylegan2.faces64/checkpoint -o people/ --count 4",
        " Each person is an aligned face in a file of its own, person-SEED.png; the same seed is the same person. Can "
        "be interrupted and repeated: people that are there already are left.",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="a generator of 'facezoo list', or its folder")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--count", type=positive, default=16, metavar="N", help="how many people (default: 16)")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="the first person's number (default: 0)")
    parser.add_argument(
        "--truncation",
        type=part,
        default=0.7,
        metavar="T",
        help="0 to 1: smaller is likelier to look right and less varied (default: 0.7)",
    )
    parser.add_argument("--sheet", action="store_true", help="also write all of them into one picture, sheet.png")
    parser.add_argument("--revision", help="revision of a Hugging Face model")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, ... (default: cpu)")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are something else")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(command=_generate)


def _generate(arguments: argparse.Namespace) -> int:
    from facezoo.generate import generate_people, load_generator

    if arguments.seed + arguments.count > 2**63:
        raise InputError(f"the last seed would be beyond {2**63 - 1}; choose a smaller --seed")
    folder = Path(arguments.output)
    generator, title = load_generator(arguments.model, revision=arguments.revision, device=arguments.device)
    with output_folder(folder), progress_bar(arguments.count, "person", arguments.quiet) as advance:
        people = generate_people(
            generator,
            title,
            folder,
            count=arguments.count,
            seed=arguments.seed,
            truncation=arguments.truncation,
            sheet=arguments.sheet,
            overwrite=arguments.overwrite,
            report=advance,
        )
    if not arguments.quiet:
        before = arguments.count - people.made
        there = f" ({before} there before)" if before else ""
        print(printable(f"{folder}: {arguments.count} people who do not exist{there}, from {people.files[0].name} on"))
        if people.sheet is not None:
            print(printable(str(people.sheet)))
    return 0
