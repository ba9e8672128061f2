"""``facezoo attack``."""

from __future__ import annotations

import argparse
from pathlib import Path

from facezoo.cli.common import Commands, add_command, import_part, minutes, parse_options, positive, whole
from facezoo.errors import InputError

_ATTACKS = ("linkability", "parrot", "inversion", "key_guessing", "average", "deblur")
"""As ``facezoo.evaluate.attacks.ATTACKS``, which needs torch (a test holds them together)."""


def add_attack(commands: Commands) -> None:
    """The command ``attack`` and its options."""
    parser = add_command(
        commands,
        "attack",
        "attack a model with a stated budget, and write what it found",
        "  facezoo attack gaussian_blur --data packed/evaluation.safetensors --attack deblur -o deblur.json\n"
        "  facezoo attack identity_rotation --data packed/evaluation.safetensors --attack inversion --minutes 10 "
        "--attacker-data packed/train.safetensors -o inversion.json",
        " The attacker knows everything but the key; what each attack does and spends is in docs/measuring.md.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set of the victims")
    parser.add_argument(
        "--attacker-data",
        metavar="FILE",
        help="packed set of the attacker's own faces (default: half of the people of --data)",
    )
    parser.add_argument("--attack", required=True, choices=_ATTACKS, help="which")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where the JSON goes")
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="recogniser that judges; may be given again (default: those found that the method was not trained with)",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="attack N victims' faces only, drawn with the seed")
    parser.add_argument("--budget", type=positive, metavar="N", help="in the attack's own unit (batches, keys, ...)")
    parser.add_argument("--minutes", type=minutes, metavar="M", help="stop learning or trying after M minutes")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="of every choice (default: 0)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the method")
    parser.add_argument(
        "--dictionary", metavar="FILE", help="passphrases that key_guessing tries, one a line, likeliest first"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older file")
    parser.set_defaults(command=_attack)


def _read_dictionary(path: str) -> tuple[str, ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the dictionary {path} ({error}): give a text file, one passphrase a line"
        ) from None
    words = tuple(line for line in lines if line.strip())
    if not words:
        raise InputError(f"the dictionary {path} is empty: write one passphrase a line")
    return words


def _attack(arguments: argparse.Namespace) -> int:
    from facezoo.hub.manifest import resolve_model

    words = () if arguments.dictionary is None else _read_dictionary(arguments.dictionary)
    options = parse_options(resolve_model(arguments.model).method, arguments.option)
    attacks = import_part("facezoo.evaluate.attacks", "attacking", "eval")
    settings = attacks.AttackSettings(
        judges=tuple(arguments.judge),
        limit=arguments.limit,
        budget=arguments.budget,
        minutes=arguments.minutes,
        seed=arguments.seed,
        dictionary=words,
    )
    result = attacks.run_attack(
        arguments.model,
        arguments.data,
        arguments.attack,
        arguments.output,
        settings=settings,
        attacker_data=arguments.attacker_data,
        options=options,
        overwrite=arguments.overwrite,
    )
    budget = result["budget"]
    print(f"{result['attack']} ({budget['spent']} {budget['unit']}, {result['n']} cases): {result['finding']}")
    return 0
