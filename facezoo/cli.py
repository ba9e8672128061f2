"""The command line: parses, calls, prints. Nothing heavy is imported before a command needs it.

Exit codes: 0 all pictures done; 1 internal or mixed errors; 2 input or usage; 3 no face; 4 key; 5 checkpoint;
6 record; 7 output; 130 interrupted. An error is one line on stderr, ``facezoo: error: ...``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from facezoo import __version__
from facezoo.errors import FacezooError, InputError, KeyMaterialError, OutputError
from facezoo.tags import printable

if TYPE_CHECKING:
    from facezoo.batch import Job, Outcome, Plan, Settings
    from facezoo.keys import Key

__all__ = ["build_parser", "main"]

_KEY_HELP = (
    "file with the key or passphrase ('facezoo key new FILE' makes one); - reads standard input; "
    "without it the variable FACEZOO_KEY is used, else you are asked"
)


_ATTRIBUTE_HELP = (
    "attribute of the new face, for methods that have them (sdn, mfm): smiling=yes, hair=blond, ...; may be repeated"
)


class _UsageError(Exception):
    """A command line that cannot be parsed."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line instead of a page of usage; options are written out in full."""

    def __init__(self, **settings: Any) -> None:
        # Shortened options would let `--key` mean one thing today and another tomorrow.
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise _UsageError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    debug = os.environ.get("FACEZOO_DEBUG") == "1"
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a file name that the terminal's encoding lacks is no error
                stream.reconfigure(errors="backslashreplace")
        words = list(sys.argv[1:] if argv is None else argv)
        _refuse_secrets(words)
        arguments, unknown = build_parser().parse_known_args(words)
        if unknown and hasattr(arguments, "inputs") and not any(word.startswith("-") for word in unknown):
            arguments.inputs += unknown  # argparse takes only the first group of inputs; more may follow the options
        elif unknown:
            raise _UsageError(f"{_unknown_text(unknown)}; see: facezoo {arguments.command_name} --help")
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except _UsageError as error:
        _print_error(str(error))
        return 2
    except SystemExit as error:  # argparse leaves this way after --help and --version
        return error.code if isinstance(error.code, int) else 0
    except FacezooError as error:
        if debug:
            traceback.print_exc()
        _print_error(str(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, say) left: say nothing, and keep Python from saying it at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        _print_error("interrupted; finished pictures are complete, run the same command again to go on")
        return 130
    except Exception as error:  # a user sees one line, whatever happens
        if debug:
            traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _print_error(f"internal error ({text}); set FACEZOO_DEBUG=1 for details")
        return 1


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError):  # nowhere to print to: the exit code still tells
        print(f"facezoo: error: {printable(message)}", file=sys.stderr)


_SECRET_OPTIONS = ("--key", "--passphrase", "--password", "--secret", "--pass")


def _refuse_secrets(words: Sequence[str]) -> None:
    """Refuse a key given on the command line, without repeating it.

    Raises:
        KeyMaterialError: an option that looks like it carries a key.
    """
    for word in words:
        if word == "--":
            return
        if word.partition("=")[0] in _SECRET_OPTIONS:
            raise KeyMaterialError(
                "a key is never given on the command line, where other users and the shell's history see it; use "
                "--key-file FILE (- reads standard input), the variable FACEZOO_KEY, or wait to be asked"
            )


def _unknown_text(words: Sequence[str]) -> str:
    """Says what was not understood; never the value of an option, which may be a secret."""
    options = [word.partition("=")[0] for word in words if word.startswith("-") and word != "-"]
    if options:
        return f"unknown option {', '.join(options)}"
    if len(words) == 1:
        return f"unknown argument {words[0]!r}"
    return f"{len(words)} arguments too many, the first is {words[0]!r}"


# -------------------------------------------------------------------------------------------------------------- parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="facezoo",
        description="Make faces in pictures anonymous, and bring them back with the key.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "examples:\n"
            "  facezoo demo\n"
            "  facezoo key new my.key\n"
            "  facezoo anonymize group.jpg -o group.anon.png --model identity_rotation --key-file my.key\n"
            "  facezoo recover group.anon.png -o group.back.png --key-file my.key\n"
            "  facezoo anonymize photos/ -o photos.anon/ --model gaussian_blur --workers 2\n"
            "\n'facezoo COMMAND --help' tells more about a command."
        ),
    )
    parser.add_argument("--version", action="version", version=f"facezoo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command_name")
    _add_anonymize(commands)
    _add_recover(commands)
    _add_list(commands)
    _add_info(commands)
    _add_key(commands)
    _add_demo(commands)
    _add_prepare(commands)
    _add_label(commands)
    _add_train(commands)
    _add_directions(commands)
    _add_clusters(commands)
    _add_evaluate(commands)
    _add_generate(commands)
    _add_curves(commands)
    return parser


Commands = Any  # argparse keeps the type of its sub-parsers' collection private


def _add(commands: Commands, name: str, summary: str, examples: str, details: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.{details}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e7:  # NaN fails too
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return value


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return value


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:  # NaN fails too
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _quality(text: str) -> int:
    value = _positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a quality of 1 to 100")
    return value


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures and folders")
    parser.add_argument("-o", "--output", required=True, help="file for one picture, folder for several")
    parser.add_argument("--key-file", metavar="FILE", help=_KEY_HELP)
    parser.add_argument(
        "--key-form",
        choices=("passphrase", "six-digits", "bits"),
        default="passphrase",
        help="how a typed key is read; six digits and bits are the papers' forms and are worth little",
    )
    parser.add_argument("--revision", help="revision of a Hugging Face model")
    parser.add_argument("--device", default="cpu", help="where a learned model runs: cpu, cuda, ... (default: cpu)")
    parser.add_argument(
        "--detector", default="yunet", metavar="NAME", help="yunet or centerface, or a registered one (default: yunet)"
    )
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--format", choices=("png", "jpg", "webp"), help="output format (default: from the ending, else png: lossless)"
    )
    parser.add_argument("--quality", type=_quality, default=95, help="of jpg and webp, 1 to 100 (default: 95)")
    parser.add_argument(
        "--metadata",
        choices=("drop", "keep-safe"),
        default="drop",
        help="what becomes of EXIF: drop it, or keep the fields that show neither place nor face (default: drop)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def _add_anonymize(commands: Commands) -> None:
    parser = _add(
        commands,
        "anonymize",
        "make the faces of pictures anonymous",
        "  facezoo anonymize group.jpg -o group.anon.png --model identity_rotation --key-file my.key\n"
        "  facezoo anonymize photos/ -o photos.anon/ --model gaussian_blur --workers 2\n"
        "  facezoo anonymize a.jpg -o b.png --model sdn --attribute smiling=yes --attribute hair=blond\n"
        "  facezoo anonymize group.jpg -o anon.png --model pixelation --option block=30 --seal --key-file my.key\n"
        "  pass show photos | facezoo anonymize a.jpg b.jpg -o out/ --model identity_rotation --key-file -",
        " Beside each output a record FILE.facezoo.json is written, which recovery uses. When a face cannot be "
        "anonymized, nothing is written for that picture. A folder's run can be repeated: what is finished is left.",
    )
    _add_files(parser)
    parser.add_argument("--model", required=True, metavar="NAME", help="see 'facezoo list'; or a folder, or org/name")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="option of the method ('facezoo info NAME')"
    )
    parser.add_argument(
        "--epsilon", metavar="E", help="privacy loss of a face, for methods that have one; short for --option epsilon=E"
    )
    parser.add_argument(
        "--budget",
        metavar="E[,DELTA]",
        help="privacy budget of each person: a picture that would spend more is refused (methods with an epsilon)",
    )
    parser.add_argument(
        "--ledger", metavar="FILE", help="where the budget's sums are kept (default: in the output folder)"
    )
    parser.add_argument(
        "--budget-people",
        choices=("everyone", "folder"),
        default="everyone",
        help="who pays for a face: one account for all faces (safe; default), or the person that the sub-folder names",
    )
    parser.add_argument("--attribute", action="append", default=[], metavar="NAME=VALUE", help=_ATTRIBUTE_HELP)
    parser.add_argument("--seal", action="store_true", help="put the originals, encrypted, into the record")
    parser.add_argument("--keep", metavar="FOLDER", help="people in these pictures are left as they are")
    parser.add_argument("--boxes", metavar="FILE.json", help="faces to anonymize, instead of detected ones")
    parser.add_argument(
        "--verify",
        choices=("on", "add", "off"),
        default="on",
        help="second detector: on refuses a picture with a face that only it sees, add anonymizes that face too",
    )
    parser.add_argument(
        "--allow-no-face",
        choices=("copy", "skip"),
        help="picture without a face: write it unchanged, or write nothing (default: an error)",
    )
    parser.add_argument("--embed-record", action="store_true", help="put the record into the PNG as well")
    parser.add_argument("--no-record", action="store_true", help="write no FILE.facezoo.json")
    parser.set_defaults(command=_anonymize)


def _add_recover(commands: Commands) -> None:
    parser = _add(
        commands,
        "recover",
        "bring the faces of anonymized pictures back",
        "  facezoo recover group.anon.png -o group.back.png --key-file my.key\n"
        "  facezoo recover group.anon.png -o group.back.png --key-file my.key --no-record --model identity_rotation\n"
        "  facezoo recover photos.anon/ -o photos.back/ --key-file my.key",
        " The record beside the picture (or inside the PNG) says where the faces are and which model made them; with "
        "--no-record they are looked for. Sealed faces come back without loss.",
    )
    _add_files(parser)
    parser.add_argument("--model", metavar="NAME", help="needed where there is no record")
    parser.add_argument("--no-record", action="store_true", help="use the picture and the key alone")
    parser.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="attributes that the picture was made with, where its record does not keep them; may be repeated",
    )
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        help="write a picture although the key fits none of its faces (default: an error, for lack of a record)",
    )
    parser.set_defaults(command=_recover)


def _add_list(commands: Commands) -> None:
    parser = _add(commands, "list", "list the models", "  facezoo list\n  facezoo list --json")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(command=_list)


def _add_info(commands: Commands) -> None:
    parser = _add(commands, "info", "tell about one model", "  facezoo info gaussian_blur\n  facezoo info NAME --json")
    parser.add_argument("name", metavar="NAME", help="a model of 'facezoo list', a checkpoint folder, or org/name")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(command=_info)


def _add_key(commands: Commands) -> None:
    parser = _add(commands, "key", "make a key file", "  facezoo key new my.key")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    new = _add(
        actions,
        "new",
        "make a key file with a fresh random key",
        "  facezoo key new my.key",
        " Keep it safe: whoever has it can recover the pictures, and without it nobody can.",
    )
    new.add_argument("file", metavar="FILE", help="new file; an existing one is never replaced")
    new.set_defaults(command=_key_new)


def _add_demo(commands: Commands) -> None:
    parser = _add(
        commands,
        "demo",
        "show every model on a public-domain picture",
        "  facezoo demo\n  facezoo demo -o my_demo --model runs/mine/checkpoint",
        " Writes one PNG sheet and prints how far recognisers are from knowing the faces. No network is needed.",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="learned model (or its folder) to show instead of the bundled ones; may be repeated",
    )
    parser.add_argument("-o", "--output", default="demo_out", metavar="FOLDER", help="default: demo_out")
    parser.set_defaults(command=_demo)


def _add_prepare(commands: Commands) -> None:
    parser = _add(
        commands,
        "prepare",
        "detect, align and pack a folder of pictures for training",
        "  facezoo prepare photos/ -o packed/photos.safetensors\n"
        "  facezoo prepare people/ -o packed/people.safetensors --size 128",
        " Sub-folders may name people. What was left out, and why, is reported. Can be interrupted and repeated.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="pictures, optionally in one sub-folder per person")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="packed set (.safetensors)")
    parser.add_argument("--size", type=_positive, default=128, help="side of the crops (default: 128)")
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
    parser.add_argument("--min-face", type=_positive, default=40, metavar="PIXELS", help="smaller faces are left out")
    parser.add_argument("--source", default="", metavar="TEXT", help="where the pictures come from, and their rights")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes beside this one (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing set")
    parser.set_defaults(command=_prepare)


def _add_label(commands: Commands) -> None:
    parser = _add(
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


def _add_directions(commands: Commands) -> None:
    parser = _add(
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
    parser.add_argument("--limit", type=_positive, default=600, metavar="N", help="pictures to use (default: 600)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.set_defaults(command=_directions)


def _add_clusters(commands: Commands) -> None:
    parser = _add(
        commands,
        "clusters",
        "plot a model's latent space: PCA, t-SNE and the way between cluster centres (mfm, sdn)",
        "  facezoo clusters runs/mfm.faces64/checkpoint --data packed/train128.safetensors -o plots/ --attribute hair",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set with labels")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where clusters.png and between.png go")
    parser.add_argument("--attribute", required=True, metavar="NAME", help="attribute whose values are the clusters")
    parser.add_argument("--limit", type=_positive, default=400, metavar="N", help="pictures to use (default: 400)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing plots")
    parser.set_defaults(command=_clusters)


def _add_train(commands: Commands) -> None:
    parser = _add(
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
    parser.add_argument("--max-minutes", type=_minutes, metavar="M", help="stop (and save) after this time")
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
    parser.add_argument("--devices", type=_positive, default=1, metavar="N", help="processes on this machine")
    parser.add_argument("--nodes", type=_positive, default=1, metavar="N", help="machines")
    parser.add_argument("--init-from", metavar="MODEL", help="model or checkpoint folder that a new run starts from")
    parser.add_argument("--overwrite", action="store_true", help="start anew although the folder holds a run")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases too (WANDB_MODE=offline works)")
    parser.set_defaults(command=_train)


def _add_evaluate(commands: Commands) -> None:
    parser = _add(
        commands,
        "evaluate",
        "measure a model: privacy, recovery, picture quality",
        "  facezoo evaluate identity_rotation --data packed/evaluation.safetensors -o results/",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set of the evaluation split")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where evaluation.json and .md go")
    parser.add_argument("--limit", type=_positive, metavar="N", help="use N faces only, drawn with the seed")
    parser.add_argument("--overwrite", action="store_true", help="replace an older report")
    parser.set_defaults(command=_evaluate)


def _add_generate(commands: Commands) -> None:
    parser = _add(
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
    parser.add_argument("--count", type=_positive, default=16, metavar="N", help="how many people (default: 16)")
    parser.add_argument("--seed", type=_whole, default=0, metavar="S", help="the first person's number (default: 0)")
    parser.add_argument(
        "--truncation",
        type=_part,
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


def _add_curves(commands: Commands) -> None:
    parser = _add(
        commands,
        "curves",
        "draw an option against privacy and likeness, or the book's tables beside ours",
        "  facezoo curves identity_dp --vary epsilon=0.1,1,6,50,800 --data packed/evaluation.safetensors -o curves/\n"
        "  facezoo curves ksame_pixel --vary k=2,5,10 --option gallery=packed/others.safetensors --option mode=open "
        "--data packed/evaluation.safetensors -o curves/\n"
        "  facezoo curves --tables --data packed/evaluation.safetensors -o tables/",
        " Writes csv, JSON and PNG (or Markdown and JSON for the tables). Noise is drawn from the seed.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model's name or a checkpoint folder")
    parser.add_argument("--vary", metavar="NAME=V1,V2,...", help="option on the horizontal axis, and its values")
    parser.add_argument("--tables", action="store_true", help="the book's tables 4.1 and 5.1, ours beside them")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="another option, fixed")
    parser.add_argument("--data", required=True, metavar="FILE", help="packed set of the evaluation split")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--limit", type=_positive, metavar="N", help="use N faces only, drawn with the seed")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of faces and noise (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace older files")
    parser.set_defaults(command=_curves)


# ----------------------------------------------------------------------------------------------- anonymize and recover


def _anonymize(arguments: argparse.Namespace) -> int:
    import base64

    from facezoo.batch import Settings, find_finished, plan_jobs
    from facezoo.hub.manifest import resolve_model
    from facezoo.keys import new_salt
    from facezoo.registry import require_anonymizer

    plan = plan_jobs(arguments.inputs, arguments.output, file_format=arguments.format)
    model = resolve_model(arguments.model, revision=arguments.revision)
    info = require_anonymizer(model.method, model.name)
    if arguments.epsilon is not None:
        arguments.option.append(f"epsilon={arguments.epsilon}")
    options = _with_attributes(model.method, _parse_options(model.method, arguments.option), arguments.attribute)
    boxes = _read_boxes(arguments.boxes)
    if arguments.keep is not None and not Path(arguments.keep).is_dir():
        raise InputError(f"--keep {arguments.keep}: no such folder; give a folder with pictures of the people to keep")
    if not plan.to_folder:
        _check_single(plan.jobs[0], arguments.format, embed=arguments.embed_record)
    elif arguments.embed_record and (arguments.format or "png") != "png":
        raise InputError("only a PNG can carry its record: use --format png, or leave out --embed-record")
    if arguments.seal and arguments.no_record and not arguments.embed_record:
        raise InputError("--seal puts the originals into the record: leave out --no-record, or add --embed-record")
    ledger, budget = _parse_budget(arguments, plan)
    key: Key | None = None
    if arguments.seal or info.requires_key or (info.uses_key and _key_is_given(arguments)):
        key = _read_key(arguments, confirm=True)
    elif arguments.key_file is not None:
        _note(arguments, f"{model.name} uses no key: the key file is not read (--seal would use it)")
    settings = Settings(
        task="anonymize",
        model=arguments.model,
        revision=arguments.revision,
        detector=arguments.detector,
        device=arguments.device,
        options=options,
        boxes=boxes,
        keep=arguments.keep,
        seal=arguments.seal,
        verify=arguments.verify,
        no_face=arguments.allow_no_face or "refuse",
        metadata=arguments.metadata,
        file_format=arguments.format or ("png" if plan.to_folder else None),
        quality=arguments.quality,
        embed=arguments.embed_record,
        write_record=not arguments.no_record,
        overwrite=arguments.overwrite,
        salt=base64.b64encode(new_salt()).decode(),
        ledger=ledger,
        budget=budget,
        budget_people=arguments.budget_people,
    )

    def finished(job: Job) -> bool:
        return find_finished(job, settings, model, key)

    if plan.left_out:
        _note(arguments, f"files that are no pictures were left out: {plan.left_out}")
    return _run(arguments, settings, plan, key, finished)


def _recover(arguments: argparse.Namespace) -> int:
    from facezoo.batch import RecoveryLog, Settings, plan_jobs
    from facezoo.hub.manifest import resolve_model
    from facezoo.registry import require_anonymizer

    plan = plan_jobs(arguments.inputs, arguments.output, file_format=arguments.format)
    if arguments.model is not None:
        model = resolve_model(arguments.model, revision=arguments.revision)
        require_anonymizer(model.method, model.name)
    elif arguments.no_record:
        raise InputError("--no-record needs --model NAME: without the record nothing says which model was used")
    if not plan.to_folder:
        _check_single(plan.jobs[0], arguments.format, embed=False)
    options: dict[str, object] = {}
    if arguments.attribute:
        from facezoo.data.attributes import format_request, parse_request

        options["attributes"] = format_request(parse_request(arguments.attribute))
    key = _read_key(arguments, confirm=False)
    settings = Settings(
        task="recover",
        model=arguments.model or "",
        options=options,
        revision=arguments.revision,
        detector=arguments.detector,
        device=arguments.device,
        metadata=arguments.metadata,
        file_format=arguments.format or ("png" if plan.to_folder else None),
        quality=arguments.quality,
        write_record=False,
        use_record=not arguments.no_record,
        allow_unverified=arguments.allow_unverified,
        overwrite=arguments.overwrite,
    )
    log = RecoveryLog(plan.folder, settings, key) if plan.folder is not None else None

    def finished(job: Job) -> bool:
        if log is not None:
            return log.finished(job)
        if job.target.exists() and not settings.overwrite:
            raise OutputError(f"{job.target} exists already; choose another name or use --overwrite")
        return False

    def note(outcome: Outcome) -> None:
        if log is not None and outcome.status == "done":
            log.add(outcome.job)

    return _run(arguments, settings, plan, key, finished, note)


def _check_single(job: Job, file_format: str | None, *, embed: bool) -> None:
    """Refuse an output of one picture before a model is loaded for it."""
    endings = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
    kind = endings.get(job.target.suffix.lower())
    if kind is None and file_format is None:
        raise InputError(
            f"{job.target}: cannot tell the format from the ending {job.target.suffix!r}; use .png, .jpg or .webp"
        )
    if kind is not None and file_format is not None and kind != file_format:
        raise InputError(f"{job.target} ends in {job.target.suffix} but --format says {file_format}; make them agree")
    if embed and (file_format or kind) != "png":
        raise InputError("only a PNG can carry its record: save as .png, or leave out --embed-record")
    if job.target.is_dir():
        raise OutputError(f"cannot write {job.target}: it is a folder; give a file name")
    parent = job.target.parent
    if not parent.is_dir():
        raise OutputError(f"cannot write {job.target}: the folder {parent} does not exist; make the folder first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {job.target}: permission denied; choose a folder you may write to")


def _run(
    arguments: argparse.Namespace,
    settings: Settings,
    plan: Plan,
    key: Key | None,
    finished: Callable[[Job], bool],
    note: Callable[[Outcome], None] | None = None,
) -> int:
    """Do what is not finished yet, show progress, list failures at the end."""
    from facezoo.batch import Outcome, run_jobs

    jobs, to_folder = plan.jobs, plan.to_folder
    waiting: list[Job] = []
    outcomes: list[Outcome] = []
    for job in jobs:
        try:
            if finished(job):
                outcomes.append(Outcome(job, "finished", "finished by an earlier run"))
            else:
                waiting.append(job)
        except FacezooError as error:
            if not to_folder:
                raise
            outcomes.append(Outcome(job, "failed", str(error), exit_code=error.exit_code))
    with (
        _output_folder(plan.folder),
        _progress(len(jobs), len(outcomes), arguments.quiet or not to_folder) as advance,
    ):

        def report(outcome: Outcome) -> None:
            if note is not None:
                note(outcome)
            advance(outcome)

        outcomes += run_jobs(waiting, settings, key, workers=arguments.workers, report=report)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]

    if not to_folder:
        outcome = outcomes[0]
        if failed:
            named = str(outcome.job.source) in outcome.message or str(outcome.job.target) in outcome.message
            _print_error(outcome.message if named else f"{outcome.job.source}: {outcome.message}")
            return outcome.exit_code or 1
        for line in outcome.lines:
            if line.startswith("warning: "):
                print(f"facezoo: {line}", file=sys.stderr)
            elif not arguments.quiet:
                print(line)
        if not arguments.quiet:
            wrote = "" if outcome.status == "skipped" else f"{outcome.job.target}: "
            print(printable(f"{wrote}{outcome.message}"))
        return 0

    for outcome in outcomes:
        for line in outcome.lines:
            if line.startswith("warning: "):
                print(printable(f"facezoo: {outcome.job.source}: {line}"), file=sys.stderr)
            elif not arguments.quiet:
                print(printable(f"{outcome.job.source}: {line}"))
    if not arguments.quiet:
        count = {status: sum(item.status == status for item in outcomes) for status in ("done", "finished", "skipped")}
        faces = sum(outcome.faces for outcome in outcomes)
        done = f"{count['done']} of {len(outcomes)} pictures done ({faces} faces)"
        more = [f"{count['finished']} finished before"] if count["finished"] else []
        more += [f"{count['skipped']} skipped (no face)"] if count["skipped"] else []
        print("; ".join([done, *more]))
    for outcome in failed:
        message = outcome.message.removeprefix(f"{outcome.job.source}: ").removeprefix(f"{outcome.job.source} ")
        print(printable(f"facezoo: failed: {outcome.job.source}: {message}"), file=sys.stderr)
    if not failed:
        return 0
    _print_error(f"{len(failed)} of {len(outcomes)} pictures failed (listed above); nothing was written for them")
    codes = {outcome.exit_code for outcome in failed}
    return codes.pop() if len(codes) == 1 else 1


@contextlib.contextmanager
def _output_folder(folder: Path | None) -> Iterator[None]:
    """Make the output folder before any work is done for it; take it away again if nothing came into it.

    Raises:
        OutputError: it cannot be made.
    """
    made: list[Path] = []
    if folder is not None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                made.insert(0, path)
        except OSError as error:
            _remove_empty(made)
            raise OutputError(f"cannot make the folder {folder}: {error.strerror}; choose another with -o") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write to the folder {folder}: permission denied; choose another with -o")
    try:
        yield
    finally:
        _remove_empty(made)


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with contextlib.suppress(OSError):  # not empty: results lie in it
            path.rmdir()


@contextlib.contextmanager
def _progress(total: int, done: int, quiet: bool) -> Iterator[Callable[[Outcome], None]]:
    """A progress bar on stderr, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda outcome: None
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit="picture", file=sys.stderr, dynamic_ncols=True) as bar:
        failures = 0

        def advance(outcome: Outcome) -> None:
            nonlocal failures
            failures += outcome.status == "failed"
            if failures:
                bar.set_postfix(failed=failures, refresh=False)
            bar.update(1)

        yield advance


def _key_is_given(arguments: argparse.Namespace) -> bool:
    return arguments.key_file is not None or "FACEZOO_KEY" in os.environ


def _read_key(arguments: argparse.Namespace, *, confirm: bool) -> Key:
    from facezoo.keys import read_key

    key = read_key(arguments.key_file, confirm=confirm, form=arguments.key_form)
    if key.advice and confirm:
        _note(arguments, key.advice)
    return key


def _note(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print(f"facezoo: note: {text}", file=sys.stderr)


def _parse_options(method: str, texts: Sequence[str]) -> dict[str, object]:
    """``name=value`` texts -> checked values, by the method's own options class (no torch)."""
    from facezoo.registry import load_options_class

    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InputError(f"--option {text!r}: write NAME=VALUE")
        if name in pairs:
            raise InputError(f"--option {name} is given twice")
        pairs[name] = value
    if not pairs:
        return {}
    parsed = load_options_class(method).from_strings(pairs)
    return {name: getattr(parsed, name) for name in pairs}


def _parse_budget(arguments: argparse.Namespace, plan: Plan) -> tuple[str | None, tuple[float, float] | None]:
    """Path of the ledger and the budget, checked before any work is done."""
    if arguments.budget is None and arguments.ledger is None:
        if arguments.budget_people != "everyone":
            raise InputError("--budget-people says who pays: it needs --budget E")
        return None, None
    from facezoo.privacy.accounting import Cost
    from facezoo.privacy.ledger import Ledger

    cost = None
    if arguments.budget is not None:
        epsilon, _, delta = arguments.budget.partition(",")
        try:
            cost = Cost(float(epsilon), float(delta) if delta else 0.0)
        except ValueError:
            raise InputError(f"--budget {arguments.budget!r}: write an epsilon, or EPSILON,DELTA") from None
    if arguments.ledger is not None:
        path = Path(arguments.ledger)
    elif plan.folder is not None:
        path = plan.folder / ".facezoo-budget.json"
    else:
        raise InputError("--budget for a single picture needs --ledger FILE, or the next picture would not know of it")
    if arguments.ledger is not None and not path.parent.is_dir():
        raise InputError(f"cannot keep a ledger in {path.parent}: no such folder; make it first")
    Ledger(path, cost)
    return str(path), None if cost is None else (cost.epsilon, cost.delta)


def _with_attributes(method: str, options: dict[str, object], texts: Sequence[str]) -> dict[str, object]:
    """The options and the ``--attribute`` texts together, checked (no torch)."""
    from facezoo.registry import list_methods, load_options_class

    if not texts:
        return options
    options_class = load_options_class(method)
    if "attributes" not in options_class.documented():
        able = [
            info.name
            for info in list_methods()
            if info.learned and "attributes" in load_options_class(info.name).documented()
        ]
        raise InputError(f"{method} has no attributes: leave out --attribute, or use {' or '.join(able)}")
    if options.get("attributes") is not None:
        raise InputError("give the attributes with --attribute or with --option attributes=..., not with both")
    checked: Any = options_class.from_mapping({**options, "attributes": ",".join(texts)})
    return {**options, "attributes": checked.attributes}


def _read_boxes(path: str | None) -> dict[str, object]:
    """Read a boxes file: a list of boxes for every picture, or lists by picture name."""
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the boxes file {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"the boxes file {path} is no JSON: {error}") from error
    if isinstance(content, list):
        return {"": content}
    if isinstance(content, dict) and content and set(content) <= {"boxes", "points"}:
        return {"": content}
    if isinstance(content, dict) and content:
        return content
    raise InputError(
        f'the boxes file {path} must hold [[x0, y0, x1, y1], ...], or {{"picture.jpg": [[...], ...]}}, '
        'or {"boxes": [...], "points": [...]}'
    )


# ------------------------------------------------------------------------------------------------------- list and info


def _list(arguments: argparse.Namespace) -> int:
    from facezoo.hub.models import list_models

    models = list_models()
    if arguments.json:
        print(json.dumps([model.to_dict() for model in models], indent=2))
        return 0
    rows = [("NAME", "KIND", "REVERSIBLE", "KEY", "STATUS", "WHAT")]
    for model in models:
        yes = ("yes" if model.reversible else "no", "yes" if model.uses_key else "no")
        rows.append((model.name, model.kind, *yes, model.status, model.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)) + "  " + row[5])
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from facezoo.hub.manifest import resolve_model
    from facezoo.registry import list_methods, load_options_class, method_info

    names = {info.name for info in list_methods(kind=None)}
    manifest: dict[str, Any] = {}
    model_name = arguments.name
    if arguments.name in names and method_info(arguments.name).learned:
        method = arguments.name  # the method itself can be told about whether or not a checkpoint is at hand
        with contextlib.suppress(FacezooError):
            resolved = resolve_model(arguments.name)
            model_name, manifest = resolved.name, dict(resolved.manifest or {})
    else:
        resolved = resolve_model(arguments.name)
        method, model_name, manifest = resolved.method, resolved.name, dict(resolved.manifest or {})
    info = method_info(method)
    generator = info.kind == "generator"
    documented = {} if generator else load_options_class(method).documented()
    defaults = {} if generator else load_options_class(method).defaults()
    content: dict[str, Any] = {
        "name": model_name,
        "method": info.name,
        "summary": manifest.get("summary") or info.summary,
        "kind": "generator" if generator else "learned" if info.learned else "classic",
        "reversible": info.reversible,
        "uses_key": info.uses_key,
        "requires_key": info.requires_key,
        "status": manifest.get("status", "no checkpoint" if info.learned else info.status),
        "source": info.source,
        "options": {
            name: {
                "default": defaults[name] if _is_plain(defaults[name]) else str(defaults[name]),
                "doc": " ".join(note.doc.split()),
                "unit": note.unit,
                "minimum": note.minimum,
                "maximum": note.maximum,
                "choices": list(note.choices),
            }
            for name, note in documented.items()
        },
    }
    for field in ("version", "licence", "crop_size", "metrics", "training"):
        if field in manifest:
            content[field] = manifest[field]
    if arguments.json:
        print(json.dumps(content, indent=2))
        return 0
    options = content.pop("options")
    for name, value in content.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if isinstance(value, dict):
            if value:
                print(f"{name.replace('_', ' ')}:")
                for inner, figure in value.items():
                    if not isinstance(figure, dict):
                        print(f"  {inner}: {figure}")
                if deep := [inner for inner, figure in value.items() if isinstance(figure, dict) and figure]:
                    print(f"  more with --json: {', '.join(deep)}")
        elif value not in ("", None):
            print(f"{name.replace('_', ' ')}: {value}")
    print("options:" if options else "options: none")
    for name, note in options.items():
        limits = ", ".join(note["choices"]) or " to ".join(
            f"{bound:g}" for bound in (note["minimum"], note["maximum"]) if bound is not None
        )
        facts = "; ".join(filter(None, [f"default {note['default']}", note["unit"], limits]))
        print(f"  {name}: {note['doc']} ({facts})")
    return 0


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


# ------------------------------------------------------------------------------------------------------ other commands


def _key_new(arguments: argparse.Namespace) -> int:
    from facezoo.keys import Key

    Key.generate_file(arguments.file)
    print(f"{arguments.file}: a new random key; keep it safe, nobody can recover your pictures without it")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from facezoo.demo import run_demo

    run_demo(Path(arguments.output), learned=arguments.model)
    return 0


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
    from facezoo.hub.manifest import resolve_model

    run = _import("facezoo.core.run", "training", "train")
    init_from = arguments.init_from
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
        wandb=arguments.wandb,
        init_from=init_from,
    )
    ended = "finished" if result.finished else f"stopped by {result.stopped_by}; the same command goes on"
    print(f"{result.folder}: {result.batches_seen} batches, {ended}")
    print(f"checkpoint: {result.checkpoint}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    evaluation = _import("facezoo.evaluate", "evaluation", "eval")
    result = evaluation.run_evaluation(
        arguments.model, arguments.data, arguments.output, limit=arguments.limit, overwrite=arguments.overwrite
    )
    print(evaluation.markdown_report(result))
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from facezoo.generate import generate_people, load_generator

    if arguments.seed + arguments.count > 2**63:
        raise InputError(f"the last seed would be beyond {2**63 - 1}; choose a smaller --seed")
    folder = Path(arguments.output)
    generator, title = load_generator(arguments.model, revision=arguments.revision, device=arguments.device)
    with _output_folder(folder), _bar(arguments.count, "person", arguments.quiet) as advance:
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


@contextlib.contextmanager
def _bar(total: int, unit: str, quiet: bool) -> Iterator[Callable[[], None]]:
    """A plain progress bar on stderr, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True) as bar:

        def advance() -> None:
            bar.update(1)

        yield advance


def _curves(arguments: argparse.Namespace) -> int:
    from facezoo.hub.manifest import resolve_model
    from facezoo.registry import load_options_class

    common = {"limit": arguments.limit, "seed": arguments.seed, "overwrite": arguments.overwrite}
    if arguments.tables:
        if arguments.model is not None or arguments.vary is not None or arguments.option:
            raise InputError("--tables chooses models and options itself: leave out MODEL, --vary and --option")
        curves = _import("facezoo.evaluate.curves", "measuring", "eval")
        print(curves.run_tables(arguments.data, arguments.output, **common))
        return 0
    if arguments.model is None or arguments.vary is None:
        raise InputError("curves need a MODEL and --vary NAME=V1,V2,... (or --tables)")
    name, separator, listed = arguments.vary.partition("=")
    if not separator or not all(part.strip() for part in listed.split(",")):
        raise InputError(f"--vary {arguments.vary!r}: write NAME=V1,V2,...")
    method = resolve_model(arguments.model).method
    options = _parse_options(method, arguments.option)
    kind = load_options_class(method)
    values = [getattr(kind.from_strings({name: part.strip()}), name) for part in listed.split(",")]
    curves = _import("facezoo.evaluate.curves", "measuring", "eval")
    result = curves.run_curves(
        arguments.model, arguments.data, arguments.output, option=name, values=values, options=options, **common
    )
    print(f"{arguments.output}: curves.csv, curves.json and curves.png of {len(result['points'])} settings")
    return 0


def _import(module: str, what: str, extra: str) -> Any:
    """Import a part that needs an extra, or say which one."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FacezooError(
            f"{what} is not available here ({error}); install it with: pip install 'facezoo[{extra}]'"
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
