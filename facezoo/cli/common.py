"""What the commands share: the parser, checks of values, progress, parts that need an extra."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from facezoo.errors import FacezooError, InputError, OutputError
from facezoo.tags import printable


class UsageError(Exception):
    """A command line that cannot be parsed."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line instead of a page of usage; options are written out in full."""

    def __init__(self, **settings: Any) -> None:
        # Shortened options would let `--key` mean one thing today and another tomorrow.
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise UsageError(f"{message}; see: {self.prog} --help")


def print_error(message: str) -> None:
    """One line on stderr."""
    with contextlib.suppress(OSError):  # nowhere to print to: the exit code still tells
        print(f"facezoo: error: {printable(message)}", file=sys.stderr)


Commands = Any  # argparse keeps the type of its sub-parsers' collection private


def add_command(
    commands: Commands, name: str, summary: str, examples: str, details: str = ""
) -> argparse.ArgumentParser:
    """A sub-command with its summary, details and examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.{details}",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


_N = TypeVar("_N", int, float)


def _checked(text: str, kind: Callable[[str], _N], fits: Callable[[_N], bool], what: str) -> _N:
    """A number of the command line, or argparse's error that it is not ``what``; NaN fits nothing."""
    value: _N | None = None
    with contextlib.suppress(ValueError):
        value = kind(text)
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def positive(text: str) -> int:
    """Parses a whole number above 0."""
    return _checked(text, int, lambda n: n >= 1, "a whole number above 0")


def minutes(text: str) -> float:
    """Parses a time in minutes."""
    return _checked(text, float, lambda x: 0.0 < x < 1e7, "a number of minutes above 0")


def whole(text: str) -> int:
    """Parses a whole number from 0 on."""
    return _checked(text, int, lambda n: 0 <= n < 2**63, "a whole number of 0 or more")


def part(text: str) -> float:
    """Parses a number between 0 and 1."""
    return _checked(text, float, lambda x: 0.0 <= x <= 1.0, "a number from 0 to 1")


def percent(text: str) -> float:
    """Parses a number between 0 and 100."""
    return _checked(text, float, lambda x: 0.0 <= x <= 100.0, "a number of percent from 0 to 100")


def names(text: str) -> tuple[str, ...]:
    """Parses a list of names with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def quality(text: str) -> int:
    """Parses a quality of 1 to 100."""
    value = positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a quality of 1 to 100")
    return value


def _confidence(text: str) -> float:
    return _checked(text, float, lambda x: 0.0 < x < 1.0, "a number between 0 and 1")


def _pixels(text: str) -> float:
    return _checked(text, float, lambda x: 0.0 <= x <= 10_000.0, "a number of pixels from 0 to 10000")


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how faces are looked for; `search_settings` reads them."""
    parser.add_argument(
        "--detector", default="yunet", metavar="NAME", help="yunet or centerface, or a registered one (default: yunet)"
    )
    parser.add_argument(
        "--threshold",
        type=_confidence,
        metavar="T",
        help="confidence, 0 to 1, from which a face counts (default: the detector's own, yunet .6, centerface .4); "
        "lower finds more, and more that is no face",
    )
    parser.add_argument(
        "--rotations",
        choices=("auto", "all", "off"),
        default="auto",
        help="turned faces: auto looks for those of some size in every picture, all for small ones too (slower), off "
        "for none (default: auto)",
    )
    parser.add_argument(
        "--min-face",
        type=_pixels,
        default=0.0,
        metavar="PIXELS",
        help="leave faces whose shorter side is smaller, and say how many (default: 0, every face is treated)",
    )


def search_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_search_options` read, as `facezoo.batch.Settings` takes it."""
    return {
        "detector": arguments.detector,
        "threshold": arguments.threshold,
        "rotations": {"auto": "auto", "all": True, "off": False}[arguments.rotations],
        "min_face": arguments.min_face,
    }


def parse_options(method: str, texts: Sequence[str]) -> dict[str, object]:
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


@contextlib.contextmanager
def output_folder(folder: Path | None) -> Iterator[None]:
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
def progress_bar(total: int, unit: str, quiet: bool) -> Iterator[Callable[[], None]]:
    """A plain progress bar on stderr, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True) as bar:

        def advance() -> None:
            bar.update(1)

        yield advance


def import_part(module: str, what: str, extra: str) -> Any:
    """Import a part that needs an extra, or say which one."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FacezooError(
            f"{what} is not available here ({error}); install it with: pip install 'facezoo[{extra}]'"
        ) from error
