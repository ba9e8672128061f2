"""``facezoo benchmark``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from facezoo.cli.common import Commands, add_command, import_part, minutes, names, positive, whole


def add_benchmark(commands: Commands) -> None:
    """The command ``benchmark`` and its options."""
    parser = add_command(
        commands,
        "benchmark",
        "measure every model on one set of faces, and write the tables",
        "  facezoo benchmark --data packed/evaluation.safetensors --quick\n"
        "  facezoo benchmark --data packed/ --gallery packed/others.safetensors -o results/ --page results/all.md\n"
        "  facezoo benchmark --data packed/evaluation.safetensors --models gaussian_blur,identity_rotation.faces128",
        " Results are cached by model, data and protocol: a run that was broken off goes on, and nothing is measured "
        "twice. Writes a markdown page with a privacy-utility plot and a sheet of public-domain portraits.",
    )
    parser.add_argument("--data", required=True, metavar="PLACE", help="packed set, or a prepared folder with one")
    parser.add_argument("-o", "--output", default="benchmarks/results/benchmark", metavar="FOLDER", help="results")
    parser.add_argument("--page", metavar="FILE.md", help="the page (default: benchmark.md beside the results)")
    parser.add_argument("--models", type=names, default=(), metavar="NAMES", help="only these (default: all)")
    parser.add_argument(
        "--gallery",
        metavar="FILE",
        help="packed set of other people, for the k-Same methods (default: the people of the measured set)",
    )
    parser.add_argument("--quick", action="store_true", help="200 faces, two file formats")
    parser.add_argument("--limit", type=positive, metavar="N", help="use N faces only, drawn with the seed")
    parser.add_argument("--judges", type=names, default=(), metavar="NAMES", help="recognisers (default: all found)")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="of faces, keys and noise (default: 0)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="where networks run (default: cpu)")
    parser.add_argument("--max-minutes", type=minutes, metavar="M", help="begin no model after M minutes")
    parser.add_argument("--machine", default="", metavar="TEXT", help="a sentence about the machine, for the page")
    parser.add_argument("--no-sheet", action="store_true", help="leave out the sheet of portraits")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> int:
    benchmark = import_part("facezoo.evaluate.benchmark", "the benchmark", "eval")
    pages = import_part("facezoo.evaluate.benchmark_page", "the benchmark", "eval")
    evaluation = import_part("facezoo.evaluate", "the benchmark", "eval")
    import_part("matplotlib", "the benchmark", "eval")
    page = Path(arguments.page) if arguments.page else Path(arguments.output) / "benchmark.md"
    pages.check_page(page)
    base = benchmark.QUICK if arguments.quick else evaluation.EvaluationSettings()
    settings = dataclasses.replace(
        base,
        limit=arguments.limit or base.limit,
        judges=arguments.judges,
        seed=arguments.seed,
        device=arguments.device,
        progress=not arguments.quiet,
    )
    outcomes = benchmark.run_benchmark(
        arguments.data,
        arguments.output,
        models=arguments.models,
        gallery=arguments.gallery,
        settings=settings,
        max_minutes=arguments.max_minutes,
    )
    command = "facezoo benchmark --data " + Path(arguments.data).name
    command += f" --gallery {Path(arguments.gallery).name}" if arguments.gallery else ""
    command += f" --models {','.join(arguments.models)}" if arguments.models else ""
    command += " --quick" if arguments.quick else ""
    command += f" --limit {arguments.limit}" if arguments.limit else ""
    command += f" --judges {','.join(arguments.judges)}" if arguments.judges else ""
    files = pages.write_page(outcomes, page, command=command, machine=arguments.machine, sheet=not arguments.no_sheet)
    for outcome in outcomes:
        state = "measured before" if outcome.cached else "measured" if outcome.result else outcome.reason
        print(f"{outcome.candidate.name}: {state}")
    print(*files, sep="\n")
    # A model that failed is an error; one that cannot be measured (no checkpoint, no gallery) is not.
    return 1 if any(outcome.reason.startswith("failed") for outcome in outcomes) else 0
