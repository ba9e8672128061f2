"""The command line: parses, calls, prints. Nothing heavy is imported before a command needs it.

Exit codes: 0 all pictures done; 1 internal or mixed errors; 2 input or usage; 3 no face; 4 key; 5 checkpoint;
6 record; 7 output; 8 an audit failed; 130 interrupted. An error is one line on stderr, ``facezoo: error: ...``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from facezoo import __version__
from facezoo.cli.attacking import add_attack
from facezoo.cli.audit import add_audit
from facezoo.cli.benchmark import add_benchmark
from facezoo.cli.common import Parser, UsageError, print_error
from facezoo.cli.dataset import add_anonymize_dataset
from facezoo.cli.finetuning import add_finetune
from facezoo.cli.generating import add_generate
from facezoo.cli.hub import add_download, add_publish
from facezoo.cli.measuring import add_curves, add_evaluate
from facezoo.cli.models import add_demo, add_info, add_key, add_list
from facezoo.cli.pictures import add_anonymize, add_recover
from facezoo.cli.recipes import add_recipes
from facezoo.cli.shards import add_shards
from facezoo.cli.training import add_clusters, add_directions, add_label, add_prepare, add_train
from facezoo.errors import FacezooError, KeyMaterialError

__all__ = ["build_parser", "main"]


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
            raise UsageError(f"{_unknown_text(unknown)}; see: facezoo {arguments.command_name} --help")
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except UsageError as error:
        print_error(str(error))
        return 2
    except SystemExit as error:  # argparse leaves this way after --help and --version
        return error.code if isinstance(error.code, int) else 0
    except FacezooError as error:
        if debug:
            traceback.print_exc()
        print_error(str(error))
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, say) left: say nothing, and keep Python from saying it at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print_error("interrupted; finished pictures are complete, run the same command again to go on")
        return 130
    except Exception as error:  # a user sees one line, whatever happens
        if debug:
            traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print_error(f"internal error ({text}); set FACEZOO_DEBUG=1 for details")
        return 1


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


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
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
    add_anonymize(commands)
    add_anonymize_dataset(commands)
    add_recover(commands)
    add_list(commands)
    add_info(commands)
    add_key(commands)
    add_demo(commands)
    add_prepare(commands)
    add_shards(commands)
    add_label(commands)
    add_train(commands)
    add_recipes(commands)
    add_directions(commands)
    add_clusters(commands)
    add_evaluate(commands)
    add_generate(commands)
    add_curves(commands)
    add_download(commands)
    add_finetune(commands)
    add_publish(commands)
    add_attack(commands)
    add_audit(commands)
    add_benchmark(commands)
    return parser
