"""Every error that facezoo raises on purpose.

A message is one line which says what is wrong and what to do about it. The command line prints
``facezoo: error: <message>`` and leaves with the class's ``exit_code``; a program catches ``FacezooError``.

| class | exit code | when |
|---|---|---|
| `FacezooError` | 1 | base class; anything that has no class of its own |
| `InputError` | 2 | a picture, a folder or an argument that cannot be used |
| `UnknownNameError` | 2 | a method, a model or an option that does not exist |
| `NoFaceError` | 3 | a picture without a face |
| `KeyMaterialError` | 4 | a key that is missing, malformed or of the wrong type |
| `CheckpointError` | 5 | a checkpoint that is missing, damaged or does not fit |
| `RecordError` | 6 | a record or a sealed face that is damaged, foreign or does not open |
| `OutputError` | 7 | an output that exists already or cannot be written |

``facezoo audit`` leaves with 8 when more pictures fail than may: no error, but a verdict.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CheckpointError",
    "FacezooError",
    "InputError",
    "KeyMaterialError",
    "NoFaceError",
    "OutputError",
    "RecordError",
    "UnknownNameError",
]


class FacezooError(Exception):
    """Base class of every error raised on purpose.

    Args:
        message: what is wrong and what to do. Line breaks (from a file name, say) are folded into spaces, so that
            the command line always prints one line.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        """Fold the message into one line."""
        super().__init__(" ".join(str(message).splitlines()))

    @property
    def message(self) -> str:
        """The one-line message."""
        return str(self.args[0])


class InputError(FacezooError):
    """A picture, a folder or an argument that cannot be used."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(FacezooError):
    """A method, a model or an option that does not exist."""

    exit_code: ClassVar[int] = 2


class NoFaceError(InputError):
    """A picture in which no face was found."""

    exit_code: ClassVar[int] = 3


class KeyMaterialError(FacezooError):
    """A key that is missing, malformed or of the wrong type. The message never contains key material."""

    exit_code: ClassVar[int] = 4


class CheckpointError(FacezooError):
    """A checkpoint that is missing, damaged or does not fit the method."""

    exit_code: ClassVar[int] = 5


class RecordError(FacezooError):
    """A record, or a sealed face in it, that is damaged, foreign or does not open with this key."""

    exit_code: ClassVar[int] = 6


class OutputError(FacezooError):
    """An output that exists already, or that cannot be written."""

    exit_code: ClassVar[int] = 7
