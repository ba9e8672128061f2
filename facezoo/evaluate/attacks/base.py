"""What attacks share: settings, a budget, the scene (victims, attacker, method, judges), the outcome.

The attacker knows everything but the key: the method, its weights, its options, and faces of *other* people with their
originals, which are hidden under keys of the attacker's own. No person is on both sides.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError
from facezoo.evaluate.judges import Judge, own_encoder, to_pictures, to_tensor
from facezoo.evaluate.protocol import apply_method
from facezoo.evaluate.subjects import EvaluationKeys, as_face_method
from facezoo.keys import Key
from facezoo.methods.base import FaceContext, Recovered
from facezoo.metrics import bootstrap_mean, psnr
from facezoo.recognition import Recogniser, list_recognisers, load_recogniser
from facezoo.recognition.window import TemplateWindow

__all__ = ["Attack", "AttackSettings", "Budget", "Outcome", "Scene", "percent"]

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_ATTACKER_SALT = "facezoo-attacker:"
"""Which half of the people a set without attacker's data gives to the attacker: by a hash of the name, as the
evaluation split is."""


@dataclass(frozen=True)
class AttackSettings:
    """How an attack is made.

    Attributes:
        judges: names or paths for ``load_recogniser``; empty: those found here that took no part in the method's
            training (all of them, if every one did).
        limit: victims' faces (linkability: people), drawn with the seed; None: what the attack's class says.
        budget: in the attack's own unit; None: what its class says.
        minutes: of wall time for what is learned or tried; None: no limit beside the budget. With it a result may
            differ from one machine to another.
        far: false accept rate of the thresholds.
        seed: of every choice, key and weight.
        batch_size: faces at a time.
        device: where judges and the attacker's networks compute.
        identity: recogniser in the inversion network's loss; None: pixels only. It is no judge of that attack.
        dictionary: passphrases that key guessing tries, likeliest first; empty: a short list of the commonest.
        progress: whether to show a bar.
    """

    judges: tuple[str, ...] = ()
    limit: int | None = None
    budget: int | None = None
    minutes: float | None = None
    far: float = 1e-2
    seed: int = 0
    batch_size: int = 16
    device: str = "cpu"
    identity: str | None = "sface"
    dictionary: tuple[str, ...] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuses what would fail after the work.

        Raises:
            InputError: a number out of range.
        """
        if self.batch_size < 1 or not 0 < self.far < 1 or (self.limit is not None and self.limit < 2):
            raise InputError("an attack needs batch_size >= 1, far between 0 and 1, and limit >= 2")
        if self.budget is not None and self.budget < 1:
            raise InputError(f"an attack needs a budget of at least 1, not {self.budget}")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"an attack needs more than {self.minutes} minutes")


class Budget:
    """Counts what an attack spends, and ends it.

    Args:
        units: at most this many.
        unit: what they are.
        minutes: at most this long; None: as long as it takes.
    """

    def __init__(self, units: int, unit: str, minutes: float | None = None) -> None:
        self.units = units
        self.unit = unit
        self.minutes = minutes
        self.spent = 0
        self.started = time.monotonic()

    def __iter__(self) -> Iterator[int]:
        """Numbers from 0, as long as something is left; at least one."""
        self.started = time.monotonic()
        for number in range(self.units):
            if number and self.minutes is not None and time.monotonic() - self.started > 60 * self.minutes:
                return
            self.spent = number + 1
            yield number

    def to_dict(self) -> dict[str, Any]:
        """What was allowed and what was spent."""
        return {
            "allowed": self.units,
            "unit": self.unit,
            "minutes_allowed": self.minutes,
            "spent": self.spent,
            "seconds": time.monotonic() - self.started,
        }


@dataclass(frozen=True)
class Outcome:
    """What an attack found.

    Attributes:
        n: cases behind the figures.
        figures: for JSON; rates and means with n and 95 % interval.
        finding: one line for people.
    """

    n: int
    figures: dict[str, Any]
    finding: str


class Scene:
    """The faces, the method and the judges of one attack.

    Args:
        subject: what `facezoo.evaluate.evaluate_model` takes.
        data: the victims' set (and the attacker's other half of the people, without ``attacker_data``).
        settings: of the attack.
        attacker_data: the attacker's own set; people who are in both are left out of it.
        judges: recognisers; None: those of the settings.

    Raises:
        InputError: no people on one side, or the subject cannot be attacked.
    """

    def __init__(
        self,
        subject: object,
        data: PackedFaces,
        settings: AttackSettings,
        attacker_data: PackedFaces | None = None,
        judges: Sequence[Recogniser] | None = None,
    ) -> None:
        self.settings = settings
        self.subject, self.info = as_face_method(subject, settings.seed)
        options = getattr(subject, "options", None)
        self.options: dict[str, object] = dict(options) if isinstance(options, Mapping) else {}
        self.uses_key = self.info.uses_key if self.info else True
        self.reversible = self.info.reversible if self.info else True
        self.size: int = (self.info.crop_size if self.info else None) or data.size
        self.data = data
        if attacker_data is None:
            self.attacker_data = data
            theirs = np.array([_is_attackers(name) for name in data.identities], dtype=np.bool_)
            mine = theirs[np.asarray(data.identity)]
            self.victim_rows, self.attacker_rows = np.flatnonzero(~mine), np.flatnonzero(mine)
        else:
            self.attacker_data = attacker_data
            shared = set(data.identities)
            free = np.array([name not in shared for name in attacker_data.identities], dtype=np.bool_)
            self.victim_rows = np.arange(len(data))
            self.attacker_rows = np.flatnonzero(free[np.asarray(attacker_data.identity)])
        self.random = np.random.default_rng(settings.seed)
        self.identities: IntArray = np.asarray(data.identity, dtype=np.int64)
        self.judges = [self._judge(entry) for entry in (judges if judges is not None else self._found())]
        names = [judge.name for judge in self.judges]
        if not names or len(set(names)) != len(names):
            raise InputError(f"an attack needs judges with different names, not {names}")
        self.bar = tqdm(total=0, disable=None if settings.progress else True, dynamic_ncols=True, smoothing=0.05)
        self._gallery: dict[str, Floats] = {}

    # Judges

    def _found(self) -> list[Recogniser]:
        if self.settings.judges:
            return [load_recogniser(name) for name in self.settings.judges]
        names = list_recognisers()
        free = [name for name in names if name not in (self.info.identity_encoders if self.info else ())]
        return [load_recogniser(name) for name in free or names]

    def _judge(self, recogniser: Recogniser) -> Judge:
        settings = self.settings
        return Judge(recogniser, (settings.far,), settings.device, settings.batch_size, settings.seed)

    def taught(self, judge: Judge) -> str | None:
        """Why a judge is not independent of the method; None where it is."""
        encoders = sorted(self.info.identity_encoders) if self.info else []
        return own_encoder(judge.recogniser, encoders, self.crops(self.victim_rows[:48]))

    def embed(self, judge: Judge, pictures: ByteArray) -> Floats:
        """(N, S, S, 3) -> (N, D)."""
        return np.concatenate(list(judge.embed(pictures)))

    def gallery(self, judge: Judge) -> Floats:
        """Identity vectors of every original of the victims' set, made once; sets the thresholds too."""
        if judge.name not in self._gallery:
            vectors = self.embed(judge, self.crops(np.arange(len(self.data))))
            judge.set_thresholds(vectors, self.identities)
            self._gallery[judge.name] = vectors
        return self._gallery[judge.name]

    def likeness(self, pictures: ByteArray, rows: IntArray) -> dict[str, Any]:
        """What judges say about pictures of ``rows``, against originals: `Judge.compare` and `Judge.retrieve`."""
        result = {}
        for judge in self.judges:
            gallery = self.gallery(judge)
            vectors = self.embed(judge, pictures)
            result[judge.name] = {
                **judge.compare(vectors, gallery[rows]),
                "rank_one": judge.retrieve(vectors, self.identities[rows], gallery, self.identities, rows),
            }
        return result

    def chance(self, rows: IntArray) -> dict[str, float]:
        """Rank-1 rates of a guess: ``with_original`` and ``other_pictures``, as `Judge.retrieve` counts."""
        counts = np.bincount(self.identities)[self.identities[rows]]
        others = counts[counts > 1] - 1
        return {
            "with_original": float(counts.mean() / len(self.data)),
            "other_pictures": float(others.mean() / (len(self.data) - 1)) if len(others) else 0.0,
        }

    def psnr(self, pictures: ByteArray, rows: IntArray) -> dict[str, float | int | None]:
        """Mean PSNR to the originals with its interval."""
        originals = self.crops(rows)
        step = self.settings.batch_size
        parts = [
            psnr(to_tensor(pictures[start : start + step]), to_tensor(originals[start : start + step])).numpy()
            for start in range(0, len(rows), step)
        ]
        return bootstrap_mean(np.concatenate(parts), self.settings.seed).to_dict()

    # Faces

    def crops(self, rows: IntArray, *, attackers: bool = False) -> ByteArray:
        """Originals (N, S, S, 3) at the method's size."""
        source = self.attacker_data if attackers else self.data
        pictures: ByteArray = source.batch(rows)
        if source.size == self.size or len(pictures) == 0:
            return pictures
        window = TemplateWindow(self.size, 128.0 / self.size, 0.0, 0.0)
        return np.concatenate([to_pictures(window(to_tensor(picture[None]))) for picture in pictures])

    def victims(self, default: int) -> IntArray:
        """Rows of the victims' faces, drawn with the seed: at most the settings' limit, or ``default``.

        Raises:
            InputError: fewer than two.
        """
        return self._draw(self.victim_rows, self.settings.limit or default, "victims", "more pictures with --data")

    def attackers(self, most: int) -> IntArray:
        """Rows of the attacker's own faces (of ``attacker_data``), drawn with the seed.

        Raises:
            InputError: fewer than two.
        """
        return self._draw(self.attacker_rows, most, "attacker's faces", "a set of other people with --attacker-data")

    def _draw(self, rows: IntArray, most: int, what: str, remedy: str) -> IntArray:
        if len(rows) < 2:
            raise InputError(f"the set leaves {len(rows)} {what}: give {remedy}")
        return np.sort(self.random.permutation(rows)[:most])

    # The method

    def keys(self, side: str, count: int) -> list[Key | None]:
        """Keys that follow from the seed: the victims' or the attacker's own; [None] for methods without key."""
        if not self.uses_key:
            return [None]
        keys = EvaluationKeys(self.settings.seed, count)
        return [keys.key("right" if side == "victims" else "wrong", number) for number in range(count)]

    def attackers_key(self, number: int) -> Key | None:
        """The attacker's own key of that number; None for methods without key."""
        if not self.uses_key:
            return None
        return EvaluationKeys(self.settings.seed, number + 1).key("wrong", number)

    def hide_faces(self, faces: Tensor, key: Key | None, seed: int) -> Tensor:
        """The method itself: (B, 3, S, S) in [-1, 1] -> the same."""
        if self.info is None:
            return self.subject.anonymize_faces(faces, key)
        context = FaceContext(key=key, seed=seed, options=self.options)
        return self.info.anonymize(faces.to(getattr(self.subject, "device", "cpu")), context).to(faces.device)

    def hide(self, pictures: ByteArray, keys: Sequence[Key | None], seed: int = 0) -> ByteArray:
        """Hides pictures as a user would release them: 8 bits, picture i under key i modulo their number.

        A face for which the method fails is released as it is: that is what a user would be left with.

        Args:
            pictures: (N, S, S, 3).
            keys: one or more.
            seed: for methods with chance.

        Raises:
            FacezooError: the method's own, if it fails for every face.
        """
        result, failures = pictures.copy(), 0
        last: FacezooError | None = None
        for number, key in enumerate(keys):
            members = np.arange(number, len(pictures), len(keys))
            for start in range(0, len(members), self.settings.batch_size):
                rows = members[start : start + self.settings.batch_size]
                place = seed * 1_000_003 + number * 100_003 + start
                call = functools.partial(self.hide_faces, seed=place)
                made, _, error = apply_method(call, to_tensor(pictures[rows]), key)
                last = error or last
                for row, face in zip(rows, made, strict=True):
                    if face is None:
                        failures += 1
                    else:
                        result[row] = to_pictures(face[None])[0]
                self.bar.update(len(rows))
        if failures == len(pictures) and last is not None:
            raise last
        return result

    def recover(self, pictures: ByteArray, key: Key | None) -> tuple[ByteArray, list[bool | None]]:
        """Recovers pictures (N, S, S, 3) with one key; a face that fails is black.

        Returns:
            The pictures, and what the method says about the key for each.
        """
        result = np.zeros_like(pictures)
        told: list[bool | None] = []
        for start in range(0, len(pictures), self.settings.batch_size):
            part = pictures[start : start + self.settings.batch_size]
            faces, verified, _ = apply_method(self._recover_faces, to_tensor(part), key)
            told += verified
            for row, face in enumerate(faces):
                if face is not None:
                    result[start + row] = to_pictures(face[None])[0]
            self.bar.update(len(part))
        return result, told

    def _recover_faces(self, faces: Tensor, key: Key | None) -> Tensor | Recovered:
        return self.subject.recover_faces(faces, key)

    def stage(self, text: str, steps: int) -> None:
        """Names the step in the bar and sets its length."""
        self.bar.reset(total=steps)
        self.bar.set_description(text)

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers of one purpose that follow from the seed."""
        digest = hashlib.sha256(f"{self.settings.seed}:{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _is_attackers(identity: str) -> bool:
    return hashlib.sha256((_ATTACKER_SALT + identity).encode()).digest()[0] < 128


def percent(rate: Mapping[str, Any]) -> str:
    """A rate with its interval for a finding: ``12.0 % (10.1-14.2)``."""
    if rate["value"] is None:
        return "nothing"
    return f"{100 * rate['value']:.1f} % ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"


class Attack(abc.ABC):
    """One attack.

    Attributes:
        name: on the command line.
        summary: one line for lists.
        judged: whether its finding counts faces that judges take for others, at their first false accept rate.
        unit: of the budget.
        budget: how much of it, where the settings do not say.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    judged: ClassVar[bool] = False
    unit: ClassVar[str]
    budget: ClassVar[int]

    def __init__(self, settings: AttackSettings) -> None:
        self.settings = settings
        self.spending = Budget(settings.budget or self.budget, self.unit, settings.minutes)

    @abc.abstractmethod
    def run(self, scene: Scene) -> Outcome:
        """Makes the attack.

        Raises:
            InputError: this attack says nothing about the method, or there are too few faces.
        """
