"""``facezoo evaluate`` and ``curves``."""

from __future__ import annotations

import argparse

from facezoo.cli.common import Commands, add_command, import_part, parse_options, positive
from facezoo.errors import InputError


def add_evaluate(commands: Commands) -> None:
    """The command ``evaluate`` and its options."""
    parser = add_command(
        commands,
        "evaluate",
        "measure a model: privacy, recovery, picture quality",
        "  facezoo evaluate identity_rotation --data packed/evaluation.safetensors -o results/\n"
        "  facezoo evaluate gaussian_blur --data packed/evaluation.safetensors -o new/ --judge dlib --judge my.onnx\n"
        "  facezoo evaluate identity_rotation --data packed/evaluation.safetensors -o results/ --pairs lfw_pairs.csv",
        " An ONNX judge has its preprocessing in a yaml file of the same name beside it (docs/measuring.md). A judge\n"
        "that is the method's own identity encoder is marked with a star.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set of the evaluation split")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where evaluation.json and .md go")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method")
    parser.add_argument("--limit", type=positive, metavar="N", help="use N faces (or pairs) only, drawn with the seed")
    parser.add_argument(
        "--pairs",
        metavar="FILE",
        help="csv with the columns a, b (names of pictures) and same (1 or 0), such as LFW's pairs: how often a "
        "picture and the other one, anonymized, are taken for one person; writes pairs.json and pairs.md instead",
    )
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="recogniser that judges: sface, dlib, foamliu, or a file (.onnx, .pt, .safetensors); may be given again "
        "(default: all that are found)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older report")
    parser.set_defaults(command=_evaluate)


def add_curves(commands: Commands) -> None:
    """The command ``curves`` and its options."""
    parser = add_command(
        commands,
        "curves",
        "draw an option against privacy and likeness, or the book's tables beside ours",
        "  facezoo curves identity_dp --vary epsilon=0.1,1,6,50,800 --data packed/evaluation.safetensors -o curves/\n"
        "  facezoo curves ksame_pixel --vary k=2,5,10,50 --data packed/evaluation.safetensors -o curves/\n"
        "  facezoo curves --tables --data packed/evaluation.safetensors -o tables/",
        " Writes csv, JSON and PNG (or Markdown and JSON for the tables). Noise is drawn from the seed. "
        "People to hide among are taken from the set where a method wants some (k-Same: everybody's first picture).",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--vary", metavar="NAME=V1,V2,...", help="option on the horizontal axis, and its values")
    parser.add_argument("--tables", action="store_true", help="the book's tables 4.1 and 5.1, ours beside them")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="another option, fixed")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set of the evaluation split")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--limit", type=positive, metavar="N", help="use N faces only, drawn with the seed")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of faces and noise (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace older files")
    parser.set_defaults(command=_curves)


def _evaluate(arguments: argparse.Namespace) -> int:
    from facezoo.hub.manifest import resolve_model

    options = parse_options(resolve_model(arguments.model).method, arguments.option) if arguments.option else {}
    evaluation = import_part("facezoo.evaluate", "evaluation", "eval")
    if arguments.pairs is not None:
        verification = import_part("facezoo.evaluate.pairs", "evaluation", "eval")
        told = verification.run_pairs(
            arguments.model,
            arguments.data,
            arguments.pairs,
            arguments.output,
            settings=evaluation.EvaluationSettings(judges=tuple(arguments.judge), limit=arguments.limit),
            options=options,
            overwrite=arguments.overwrite,
        )
        print(verification.pairs_report(told))
        return 0
    result = evaluation.run_evaluation(
        arguments.model,
        arguments.data,
        arguments.output,
        limit=arguments.limit,
        options=options,
        settings=evaluation.EvaluationSettings(judges=tuple(arguments.judge)),
        overwrite=arguments.overwrite,
    )
    print(evaluation.markdown_report(result))
    return 0


def _curves(arguments: argparse.Namespace) -> int:
    from facezoo.hub.manifest import resolve_model
    from facezoo.registry import load_options_class

    common = {"limit": arguments.limit, "seed": arguments.seed, "overwrite": arguments.overwrite}
    if arguments.tables:
        if arguments.model is not None or arguments.vary is not None or arguments.option:
            raise InputError("--tables chooses models and options itself: leave out MODEL, --vary and --option")
        curves = import_part("facezoo.evaluate.curves", "measuring", "eval")
        print(curves.run_tables(arguments.data, arguments.output, **common))
        return 0
    if arguments.model is None or arguments.vary is None:
        raise InputError("curves need a MODEL and --vary NAME=V1,V2,... (or --tables)")
    name, separator, listed = arguments.vary.partition("=")
    if not separator or not all(part.strip() for part in listed.split(",")):
        raise InputError(f"--vary {arguments.vary!r}: write NAME=V1,V2,...")
    method = resolve_model(arguments.model).method
    options = parse_options(method, arguments.option)
    kind = load_options_class(method)
    values = [getattr(kind.from_strings({name: part.strip()}), name) for part in listed.split(",")]
    curves = import_part("facezoo.evaluate.curves", "measuring", "eval")
    result = curves.run_curves(
        arguments.model, arguments.data, arguments.output, option=name, values=values, options=options, **common
    )
    print(f"{arguments.output}: curves.csv, curves.json and curves.png of {len(result['points'])} settings")
    return 0
