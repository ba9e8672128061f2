"""What can be judged: anything that makes aligned faces anonymous under a key."""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

from torch import Tensor

from facezoo.errors import InputError
from facezoo.keys import KdfParams, Key
from facezoo.methods.base import FaceContext, Method, Recovered

__all__ = ["AlignedMethod", "EvaluationKeys", "FaceMethod", "as_face_method"]


@runtime_checkable
class FaceMethod(Protocol):
    """Aligned faces in, aligned faces out; ``facezoo.Anonymizer`` is one."""

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> the same, all faces under one key."""

    def recover_faces(self, faces: Tensor, key: Key | None = None) -> Tensor | Recovered:
        """(B, 3, S, S) in [-1, 1] -> the same, or ``Recovered``."""


class AlignedMethod:
    """A ``Method`` as a ``FaceMethod``.

    Args:
        method: the method, on its device.
        seed: for methods with chance and no key.
    """

    def __init__(self, method: Method, seed: int = 0) -> None:
        self.method = method
        self.seed = seed

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        """See ``FaceMethod``."""
        return self.method.anonymize(faces, FaceContext(key=key, seed=self.seed))

    def recover_faces(self, faces: Tensor, key: Key | None = None) -> Recovered:
        """See ``FaceMethod``."""
        return self.method.recover(faces, FaceContext(key=key, seed=self.seed))


def as_face_method(subject: object, seed: int) -> tuple[FaceMethod, Method | None]:
    """Wraps what can be judged.

    Args:
        subject: a ``Method``, a ``facezoo.Anonymizer``, or any object with ``anonymize_faces`` and ``recover_faces``.
        seed: for methods with chance and no key.

    Returns:
        The wrapped subject, and its ``Method`` where it has one (for what it says about itself).

    Raises:
        InputError: if it is none of these.
    """
    if isinstance(subject, Method):
        return AlignedMethod(subject, seed), subject
    if not isinstance(subject, FaceMethod):
        raise InputError(
            f"{type(subject).__name__} cannot be evaluated: it needs anonymize_faces(faces, key) and "
            "recover_faces(faces, key), as a facezoo.Anonymizer or a method has."
        )
    method = getattr(subject, "method", None)
    return subject, method if isinstance(method, Method) else None


class EvaluationKeys:
    """Passphrases that follow from a seed: the right one, an unrelated one, and one that differs in one character.

    They go through the same functions as a user's passphrase, only with a cheap scrypt (n = 2): the evaluation needs
    thousands of keys, and the cost of guessing is not what it measures.

    Args:
        seed: of the whole evaluation.
        count: number of different right keys.

    Raises:
        InputError: if there is to be no key.
    """

    kinds = ("right", "wrong", "near")

    def __init__(self, seed: int, count: int) -> None:
        if count < 1:
            raise InputError(f"An evaluation needs at least one key, not {count}.")
        self.seed = seed
        self.count = count

    def phrase(self, kind: str, index: int) -> str:
        """The passphrase (nothing that protects anything: it follows from the seed)."""
        if kind not in self.kinds:
            raise InputError(f"No evaluation key is called {kind!r}; there are {', '.join(self.kinds)}.")
        role = "wrong" if kind == "wrong" else "right"
        text = hashlib.sha256(f"facezoo-evaluation:{self.seed}:{role}:{index}".encode()).hexdigest()[:24]
        if kind == "near":
            last = "0" if text[-1] != "0" else "1"
            text = text[:-1] + last
        return text

    def key(self, kind: str, index: int) -> Key:
        """The key number ``index`` (0 <= index < count) of a kind."""
        return Key.from_passphrase(self.phrase(kind, index), kdf=KdfParams(n=2, r=8, p=1))
