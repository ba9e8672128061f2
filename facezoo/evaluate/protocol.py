"""Privacy, recovery and utility of a method on faces it never saw, judged as ``docs`` promise.

Rules (each has a reason, see the field's own mistakes):

* Anonymized pictures are compared with *originals*: with the same picture, with other pictures of the person, with
  everybody else. Thresholds come from impostor pairs of real pictures.
* What is recovered was saved to a real file and read again. The recovery gets the decoded pixels and a key.
* A face for which the method fails (raises, or gives values that are not finite) stays in the denominator, at its
  worst: anonymized it counts as the original itself and as not detected, recovered it counts as a black picture.
* Each figure has its n and a 95 % interval: Wilson's for rates, bootstrap for means. Faces count as independent;
  several pictures of one person are not quite, so the intervals are a little too narrow.
* Sanity rows with known answers stand beside the method. A judge that the method was trained with is marked.

Scope: aligned crops. The way through a whole picture (detecting again, pasting) is not part of these figures.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError
from facezoo.evaluate.formats import DEFAULT_FORMATS, check_format, through_file
from facezoo.evaluate.judges import Judge, own_encoder, to_pictures, to_tensor
from facezoo.evaluate.looks import Looks, on_crops
from facezoo.evaluate.sanity import SANITY_ROWS, sanity_pictures
from facezoo.evaluate.subjects import EvaluationKeys, as_face_method
from facezoo.files import sha256_file
from facezoo.frozen import load_lpips
from facezoo.keys import Key
from facezoo.methods.base import Recovered
from facezoo.metrics import bootstrap_mean, psnr, ssim, wilson
from facezoo.recognition import Recogniser, list_recognisers, load_recogniser
from facezoo.recognition.window import TemplateWindow

__all__ = ["MINIMUM_FACES", "EvaluationSettings", "apply_method", "evaluate_model", "hardware"]

#: Fewer faces than this are marked as too few for a claim.
MINIMUM_FACES = 500

#: Real pictures that the thresholds are taken from, at most (the pairs grow with the square).
_THRESHOLD_PICTURES = 3000

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and how.

    Attributes:
        judges: names or paths for ``load_recogniser``; empty: every recogniser that is found here.
        formats: what the anonymized pictures are saved to; ``png`` comes first, whatever the order.
        limit: number of faces, drawn with the seed; None: all of the set.
        key_count: number of different right keys, shared out among the faces; None: one key a face. Fewer keys make
            bigger batches.
        far: false accept rates of the thresholds; the first is the one in the tables.
        seed: of the choice of faces, the keys, the sanity rows and the bootstrap.
        batch_size: faces at a time.
        device: where the judges compute (the method is where its owner put it).
        detector: name of the detector of the detection rate; None: no detection rate.
        looks: whether to measure how the faces look (``facezoo.evaluate.looks``).
        identity_encoders: recognisers that took part in the method's training, beside those that the method itself
            names; as judges they are marked.
        progress: whether to show a progress bar.
    """

    judges: tuple[str, ...] = ()
    formats: tuple[str, ...] = DEFAULT_FORMATS
    limit: int | None = None
    key_count: int | None = None
    far: tuple[float, ...] = (1e-3, 1e-2)
    seed: int = 0
    batch_size: int = 16
    device: str = "cpu"
    detector: str | None = "yunet"
    looks: bool = True
    identity_encoders: tuple[str, ...] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuses what would fail after hours of work.

        Raises:
            InputError: a number out of range.
            UnknownNameError: an unknown file format.
        """
        for name in self.formats:
            check_format(name)
        if self.batch_size < 1 or (self.limit is not None and self.limit < 2) or not self.far:
            raise InputError("An evaluation needs batch_size >= 1, limit >= 2 and at least one false accept rate.")
        if self.key_count is not None and self.key_count < 1:
            raise InputError(f"An evaluation needs at least one key, not {self.key_count}.")


@dataclass
class _Stage:
    """Pictures of one stage, and for which faces the method failed."""

    pictures: ByteArray
    failed: Flags
    verified: list[bool | None] = field(default_factory=list)


class _Progress:
    """One bar for everything; counts faces through any step."""

    def __init__(self, total: int, shown: bool) -> None:
        self.bar = tqdm(total=total, unit="face", disable=None if shown else True, dynamic_ncols=True, smoothing=0.05)

    def stage(self, name: str) -> None:
        self.bar.set_description(name)

    def add(self, faces: int) -> None:
        self.bar.update(faces)


def apply_method(
    call: Callable[[Tensor, Key | None], Tensor | Recovered], faces: Tensor, key: Key | None
) -> tuple[list[Tensor | None], list[bool | None], FacezooError | None]:
    """Calls the method; where it raises for a batch, face by face.

    Returns:
        For each face (3, S, S) or None where it failed; what the method says about the key; the last error.
    """
    try:
        with torch.inference_mode():
            answer = call(faces, key)
    except FacezooError as error:
        if len(faces) == 1:
            return [None], [None], error
        parts = [apply_method(call, face[None], key) for face in faces]
        return [p[0][0] for p in parts], [p[1][0] for p in parts], error
    result = answer.faces if isinstance(answer, Recovered) else answer
    verified: list[bool | None] = list(answer.verified) if isinstance(answer, Recovered) else [None] * len(faces)
    if result.shape != faces.shape:
        raise InputError(f"The method gave faces of the shape {tuple(result.shape)} for {tuple(faces.shape)}.")
    return [face if torch.isfinite(face).all() else None for face in result], verified, None


class _Run:
    """One evaluation: the faces, the subject, the judges, and the steps."""

    def __init__(
        self, subject: object, data: PackedFaces, judges: Sequence[Recogniser], settings: EvaluationSettings
    ) -> None:
        self.settings = settings
        self.method, self.info = as_face_method(subject, settings.seed)
        self.uses_key = self.info.uses_key if self.info else True
        self.identity_encoders = {*settings.identity_encoders, *(self.info.identity_encoders if self.info else ())}
        self.reversible = self.info.reversible if self.info else True
        self.chosen = self._choose(len(data))
        size = (self.info.crop_size if self.info else None) or data.size
        self.gallery = data.batch(np.arange(len(data)))
        unscaled = self.gallery[self.chosen]
        if size != data.size:
            # The template at another size; what is then saved in 8 bits is the original.
            window = TemplateWindow(size, 128.0 / size, 0.0, 0.0)
            self.gallery = np.concatenate([to_pictures(window(to_tensor(p[None]))) for p in self.gallery])
        self.originals = self.gallery[self.chosen]
        self.gallery_identities = np.asarray(data.identity, dtype=np.int64)
        self.identities = self.gallery_identities[self.chosen]
        self.keys = EvaluationKeys(settings.seed, min(settings.key_count or len(self.chosen), len(self.chosen)))
        self.formats = ("png", *(name for name in settings.formats if name != "png"))
        self.judges = [Judge(j, settings.far, settings.device, settings.batch_size, settings.seed) for j in judges]
        #: Judges that took part in the training, and one sentence why.
        self.taught: dict[str, str] = {}
        for recogniser in judges:
            reason = own_encoder(recogniser, sorted(self.identity_encoders), self.gallery)
            if reason is not None:
                self.taught[recogniser.name] = reason
        self.perceptual = load_lpips()
        self.looks: Looks | None = None
        if settings.looks:
            self.looks = Looks(
                unscaled,
                self.identities,
                self.perceptual,
                seed=settings.seed,
                batch_size=settings.batch_size,
                device=settings.device,
            )
        self.embeddings: dict[str, dict[str, npt.NDArray[np.float64]]] = {judge.name: {} for judge in self.judges}
        self.progress = _Progress(self._total(), settings.progress)

    def _choose(self, count: int) -> IntArray:
        if self.settings.limit is None or self.settings.limit >= count:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.settings.seed).choice(count, self.settings.limit, replace=False))

    def _total(self) -> int:
        """Faces through all steps, for the bar."""
        faces, judges = len(self.chosen), len(self.judges)
        made = 1 + self.uses_key
        recovered = (len(self.formats) + 2 * self.uses_key) if self.reversible else 0
        embedded = made + recovered + len(SANITY_ROWS)
        detected = (1 + len(SANITY_ROWS)) if self.settings.detector else 0
        seen = (2 + len(SANITY_ROWS)) if self.settings.looks else 0
        return faces * (made + recovered + embedded * judges + detected + seen) + len(self.gallery) * judges

    # Steps

    def through_method(self, task: str, pictures: ByteArray, kind: str, fallback: ByteArray) -> _Stage:
        """Runs the method over all pictures, each under its key.

        Args:
            task: ``anonymize`` or ``recover``.
            pictures: (N, S, S, 3).
            kind: which key (``EvaluationKeys``).
            fallback: (N, S, S, 3) what a face counts as for which the method fails.

        Raises:
            FacezooError: the method's own, if it fails for every face: then there is nothing to measure.
        """
        call = self.method.anonymize_faces if task == "anonymize" else self.method.recover_faces
        stage = _Stage(fallback.copy(), np.ones(len(pictures), dtype=np.bool_), [None] * len(pictures))
        last_error: FacezooError | None = None
        for number in range(self.keys.count if self.uses_key else 1):
            key = self.keys.key(kind, number) if self.uses_key else None
            members = np.arange(number, len(pictures), self.keys.count if self.uses_key else 1)
            for start in range(0, len(members), self.settings.batch_size):
                rows = members[start : start + self.settings.batch_size]
                faces, verified, error = apply_method(call, to_tensor(pictures[rows]), key)
                last_error = error or last_error
                for row, face, flag in zip(rows, faces, verified, strict=True):
                    stage.verified[row] = flag
                    if face is not None:
                        stage.pictures[row] = to_pictures(face[None])[0]
                        stage.failed[row] = False
                self.progress.add(len(rows))
        if stage.failed.all() and last_error is not None and kind == "right":
            raise last_error
        return stage

    def embed(self, name: str, pictures: ByteArray) -> None:
        """Embeds a stage's pictures by every judge, once."""
        for judge in self.judges:
            parts = []
            for part in judge.embed(pictures):
                parts.append(part)
                self.progress.add(len(part))
            self.embeddings[judge.name][name] = np.concatenate(parts)

    def detect(self, pictures: ByteArray, failed: Flags | None = None) -> dict[str, Any] | None:
        """Part of the pictures in which the detector finds a face; failed ones count as not found."""
        if self.settings.detector is None:
            return None
        from facezoo.faces.detect import DetectorOptions, get_detector

        # The face fills the crop, so neither small nor turned faces need to be searched for.
        smallest = max(4.0, pictures.shape[1] / 4)
        detector = get_detector(self.settings.detector, DetectorOptions(minimum_face=smallest, rotations=False))
        found = 0
        for index, picture in enumerate(pictures):
            found += bool(detector.detect(picture)) and not (failed is not None and failed[index])
            self.progress.add(1)
        return wilson(found, len(pictures)).to_dict()

    def look_at(self, pictures: ByteArray, failed: Flags | None = None) -> dict[str, Any] | None:
        """How a stage's pictures look, as saved to a PNG and read again, beside the originals."""
        if self.looks is None:
            return None
        saved = np.stack([through_file(picture, "png") for picture in pictures])
        return self.looks.measure(on_crops(saved, self.originals, self.looks.originals), failed, self.progress.add)

    # Figures

    def privacy(self, name: str) -> dict[str, Any]:
        """What every judge says about a stage, against originals."""
        result = {}
        for judge in self.judges:
            known = self.embeddings[judge.name]
            gallery = known["gallery"]
            result[judge.name] = {
                **judge.compare(known[name], gallery[self.chosen]),
                "rank_one": judge.retrieve(known[name], self.identities, gallery, self.gallery_identities, self.chosen),
            }
        return result

    def recovery(self, name: str, stage: _Stage) -> dict[str, Any]:
        """What every judge says about recovered pictures, and how near the pixels are."""
        similar, noise, perceived = [], [], []
        for start in range(0, len(self.originals), self.settings.batch_size):
            rows = slice(start, start + self.settings.batch_size)
            first, second = to_tensor(self.originals[rows]), to_tensor(stage.pictures[rows])
            noise.append(psnr(first, second).numpy())
            similar.append(ssim(first, second).double().numpy())
            if self.perceptual is not None:
                with torch.inference_mode():
                    perceived.append(self.perceptual(second, first).double().numpy())
        told = [flag for flag in stage.verified if flag is not None]
        return {
            "judges": {
                judge.name: judge.compare(
                    self.embeddings[judge.name][name], self.embeddings[judge.name]["gallery"][self.chosen]
                )
                for judge in self.judges
            },
            "psnr": bootstrap_mean(np.concatenate(noise), self.settings.seed).to_dict(),
            "ssim": bootstrap_mean(np.concatenate(similar), self.settings.seed).to_dict(),
            # None where LPIPS' weights are not found.
            "lpips": bootstrap_mean(np.concatenate(perceived), self.settings.seed).to_dict() if perceived else None,
            "failed": int(stage.failed.sum()),
            # What the method itself says about the key, where it can tell.
            "method_says_right_key": wilson(sum(told), len(told)).to_dict() if told else None,
        }

    def diversity(self) -> dict[str, Any]:
        """How alike the results of one picture under two keys are."""
        return {
            judge.name: judge.compare(
                self.embeddings[judge.name]["other_key"], self.embeddings[judge.name]["anonymized"]
            )
            for judge in self.judges
        }

    def sanity(self) -> dict[str, Any]:
        """The rows with known answers."""
        rows = {}
        for name in SANITY_ROWS:
            self.progress.stage(f"sanity: {name}")
            pictures = sanity_pictures(name, self.originals, self.identities, self.settings.seed)
            self.embed(f"sanity_{name}", pictures)
            rows[name] = {
                "judges": self.privacy(f"sanity_{name}"),
                "detected": self.detect(pictures),
                "looks": self.look_at(pictures),
            }
        return rows

    def run(self) -> dict[str, Any]:
        """All steps."""
        self.progress.stage("judges: originals")
        self.embed("gallery", self.gallery)
        for judge in self.judges:
            count = min(len(self.gallery), _THRESHOLD_PICTURES)
            rows = np.random.default_rng(self.settings.seed).permutation(len(self.gallery))[:count]
            judge.set_thresholds(self.embeddings[judge.name]["gallery"][rows], self.gallery_identities[rows])
        black = np.zeros_like(self.originals)
        started = time.perf_counter()
        self.progress.stage("anonymize")
        anonymized = self.through_method("anonymize", self.originals, "right", self.originals)
        seconds = time.perf_counter() - started
        self.embed("anonymized", anonymized.pictures)
        result: dict[str, Any] = {
            "anonymized": {
                "judges": self.privacy("anonymized"),
                "detected": self.detect(anonymized.pictures, anonymized.failed),
                "looks": self.look_at(anonymized.pictures, anonymized.failed),
                "failed": int(anonymized.failed.sum()),
                "seconds_a_face": seconds / len(self.originals),
            },
            "diversity": None,
            "recovered": None,
            "wrong_key": None,
            "near_key": None,
        }
        if self.uses_key:
            self.progress.stage("another key")
            other = self.through_method("anonymize", self.originals, "wrong", self.originals)
            self.embed("other_key", other.pictures)
            result["diversity"] = {"judges": self.diversity(), "failed": int(other.failed.sum())}
        if self.reversible:
            result["recovered"] = {}
            for name in self.formats:
                self.progress.stage(f"recover: {name}")
                saved = np.stack([through_file(picture, name) for picture in anonymized.pictures])
                stage = self.through_method("recover", saved, "right", black)
                # A face that was never anonymized is not recovered either: its picture says nothing.
                stage.pictures[anonymized.failed] = 0
                stage.failed |= anonymized.failed
                self.embed(f"recovered_{name}", stage.pictures)
                result["recovered"][name] = self.recovery(f"recovered_{name}", stage)
                if name == "png" and self.uses_key:
                    for kind in ("wrong", "near"):
                        self.progress.stage(f"recover: {kind} key")
                        stage = self.through_method("recover", saved, kind, black)
                        self.embed(f"{kind}_key", stage.pictures)
                        result[f"{kind}_key"] = self.recovery(f"{kind}_key", stage)
        result["sanity"] = self.sanity()
        self.progress.bar.close()
        return result


def hardware(device: str) -> dict[str, Any]:
    """What the figures were made on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _verdicts(sanity: Mapping[str, Any], far: float) -> list[str]:
    """What is wrong with the benchmark itself; empty when the sanity rows say what they must."""
    problems = []
    key = f"far_{far:g}"
    looks = sanity["identity"].get("looks")
    if looks is not None and (looks["grain"]["value"] < 99 or (looks["mesh"]["value"] or 0.0) > 0.1):
        problems.append("The figures of looks find differences between every original and itself.")
    for name in sanity["identity"]["judges"]:
        rates = {row: sanity[row]["judges"][name]["taken"][key] for row in sanity}
        if rates["identity"]["value"] < 1.0:
            problems.append(f"{name} does not take every original for itself ({rates['identity']['value']:.1%}).")
        if rates["black_box"]["value"] > 0.0:
            problems.append(f"{name} takes {rates['black_box']['value']:.1%} of the black boxes for the original.")
        if rates["other_person"]["low"] > max(10 * far, 0.01):
            problems.append(f"{name} takes {rates['other_person']['value']:.1%} of other people for the original.")
    return problems


def evaluate_model(
    subject: object,
    data: PackedFaces | str | os.PathLike[str],
    *,
    name: str,
    judges: Sequence[Recogniser] | None = None,
    settings: EvaluationSettings | None = None,
) -> dict[str, Any]:
    """Measures a method on a packed set of faces.

    Args:
        subject: a ``facezoo.Anonymizer``, a ``Method``, or any object with ``anonymize_faces(faces, key)`` and
            ``recover_faces(faces, key)`` for (B, 3, S, S) in [-1, 1].
        data: the packed set of the evaluation split; no person of it may have been trained on.
        name: name of the subject in the report.
        judges: recognisers; None: those of the settings. At least two that took no part in the training are needed
            for a claim.
        settings: see ``EvaluationSettings``; None: the defaults.

    Returns:
        A plain dict, ready for JSON: see ``facezoo.evaluate.report`` for its shape. Rates and means are
        ``{"value", "low", "high", "n"}`` with 95 % intervals.

    Raises:
        InputError: if the set is too small for the false accept rates, has one person only, or the subject cannot be
            evaluated.
        FacezooError: the method's own error, if it fails for every face.
    """
    settings = settings or EvaluationSettings()
    packed = data if isinstance(data, PackedFaces) else PackedFaces(data)
    if judges is None:
        judges = [load_recogniser(judge) for judge in settings.judges or list_recognisers()]
    names = [judge.name for judge in judges]
    if not names or len(set(names)) != len(names):
        raise InputError(f"An evaluation needs judges with different names, not {names}.")
    if len(packed) < 2:
        raise InputError(f"{packed.path} has {len(packed)} pictures: an evaluation needs at least two.")
    run = _Run(subject, packed, judges, settings)
    started = time.time()
    result = run.run()
    independent = [judge for judge in names if judge not in run.taught]
    notes = _verdicts(result["sanity"], settings.far[0])
    notes += [f"Judge marked: {reason}; its figures flatter." for reason in run.taught.values()]
    if len(run.chosen) < MINIMUM_FACES:
        notes.append(f"Only {len(run.chosen)} faces: at least {MINIMUM_FACES} are needed for a claim.")
    if len(independent) < 2:
        notes.append(f"Only {len(independent)} judges took no part in the training: at least 2 are needed for a claim.")
    return {
        "facezoo_evaluation": 1,
        "name": name,
        "method": run.info.name if run.info else type(subject).__name__,
        "reversible": run.reversible,
        "uses_key": run.uses_key,
        "n": len(run.chosen),
        "people": len(np.unique(run.identities)),
        "gallery": len(run.gallery),
        "data": packed.path.name,
        "data_sha256": sha256_file(packed.path),
        "model_sha256": getattr(subject, "checkpoint_sha256", "") or None,
        "size": int(run.originals.shape[1]),
        "keys": run.keys.count if run.uses_key else 0,
        "formats": list(run.formats),
        "far": list(settings.far),
        "seed": settings.seed,
        "detector": settings.detector,
        "scope": "aligned crops; detecting again and pasting into a whole picture are not part of the figures",
        "hardware": hardware(settings.device),
        "seconds": time.time() - started,
        "judges": {
            judge.name: {
                "metric": judge.metric,
                "took_part_in_training": judge.name in run.taught,
                "why": run.taught.get(judge.name),
                # In the judge's own unit: a cosine, or a distance (taken below it).
                "thresholds": {kind: judge.own_unit(value) for kind, value in judge.thresholds.items()},
            }
            for judge in run.judges
        },
        "notes": notes,
        **result,
    }
