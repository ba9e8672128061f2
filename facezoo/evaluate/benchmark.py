"""``facezoo benchmark``: every model through ``evaluate_model`` on one packed set; resumable, and cached by content.

A result is a file ``<model>.<key>.json``. The key is a hash of the model (weights, options, the sources of the
method's room), of the data and of the protocol (its version, its settings, its judges). The file is written when a
model is done, so a run that was broken off goes on at the model where it stopped, and nothing is measured twice.
Another model of the same name, other data or another protocol has another key, and its results lie beside the old ones.

Judges and detectors look at each original once for all models (``facezoo.evaluate.memory``).

Beside the figures of ``evaluate_model`` a result holds ``utility`` (likeness, detection, landmarks) and ``groups``
(faces that are still taken for the original, by sex, age group and skin tone where the set has labels), both on the
very pictures that the protocol judged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facezoo import registry
from facezoo.anonymizer import Anonymizer, from_pretrained
from facezoo.data.attributes import ATTRIBUTES
from facezoo.data.labels import labels_of
from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError, OutputError
from facezoo.evaluate.judges import to_pictures, to_tensor
from facezoo.evaluate.memory import RememberingRecogniser, remembering_detector
from facezoo.evaluate.people import own_people
from facezoo.evaluate.protocol import EvaluationSettings, evaluate_model
from facezoo.evaluate.utility import compare_found, find_faces
from facezoo.faces.detect import DetectorOptions, get_detector
from facezoo.files import atomic_write, sha256_bytes, sha256_file
from facezoo.hub.manifest import resolve_model
from facezoo.hub.models import list_models
from facezoo.keys import Key
from facezoo.methods.base import Method, Recovered
from facezoo.metrics import bootstrap_mean, psnr, similarity, ssim, wilson
from facezoo.recognition import Recogniser, list_recognisers, load_recogniser
from facezoo.recognition.window import TemplateWindow

__all__ = [
    "PROTOCOL_VERSION",
    "QUICK",
    "Candidate",
    "Outcome",
    "find_packed",
    "list_candidates",
    "run_benchmark",
]

PROTOCOL_VERSION: Final = 2
"""Raised whenever the same model on the same data would get another figure: older results are then made again."""

QUICK: Final = EvaluationSettings(limit=200, key_count=8, formats=("png", "jpeg85"))
"""``--quick``: 200 faces, two file formats, few keys (so that batches are full)."""

GROUPS: Final = ("sex", "age", "skin")
"""Attributes whose groups are looked at apart, where the set has labels."""

ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Candidate:
    """A model that may be measured.

    Attributes:
        name: as in ``facezoo list``.
        place: what ``from_pretrained`` takes: the name, or a checkpoint's folder.
        options: what it is measured with, beside its defaults.
        sha256: of weights, options and the sources of its room; "" when it cannot be measured.
        checkpoint_sha256: of the checkpoint's weights and configuration; "" for methods without weights.
        reason: why it cannot be measured; "" when it can.
    """

    name: str
    place: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    sha256: str = ""
    checkpoint_sha256: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        candidate: which.
        result: what its file holds; None when there is none.
        cached: whether it was there already.
        reason: why there is no result; "" when there is one.
    """

    candidate: Candidate
    result: Mapping[str, Any] | None
    cached: bool = False
    reason: str = ""


def find_packed(place: str | os.PathLike[str]) -> PackedFaces:
    """The packed set: a file, or the only one in a folder (``facezoo prepare -o`` made it), evaluation sets first.

    Raises:
        InputError: none, or several, or none that can be read.
    """
    path = Path(place)
    if not path.is_dir():
        return PackedFaces(path)
    found = sorted(path.glob("*.safetensors"))
    if len(found) > 1:
        found = [item for item in found if item.name.startswith("evaluation")] or found
    if len(found) != 1:
        many = f"{len(found)} packed sets" if found else "no packed set (*.safetensors)"
        raise InputError(f"there is {many} in {path}; name one file, or make one with: facezoo prepare")
    return PackedFaces(found[0])


# --------------------------------------------------------------------------------------------------------------------
# what is measured


def list_candidates(
    models: Sequence[str] = (), *, gallery: str | os.PathLike[str] | None = None
) -> tuple[Candidate, ...]:
    """Models with what each needs to be measured.

    Args:
        models: names or checkpoint folders; empty: every model of ``facezoo list`` that anonymizes.
        gallery: packed set of other people, for methods that mix faces of a gallery into their results; None: the first
            picture of each of the measured set's people.

    Returns:
        The candidates; those that cannot be measured say why.

    Raises:
        UnknownNameError: a model that does not exist (when it was named).
        CheckpointError: a damaged checkpoint (likewise).
    """
    mixed = None if gallery is None else (os.fspath(gallery), sha256_file(gallery))
    if models:
        return tuple(_candidate(name, mixed) for name in models)
    found = []
    for model in list_models():
        if model.kind == "generator":
            continue
        if model.status == "no checkpoint":
            found.append(Candidate(model.name, reason="no checkpoint ships yet: it must be trained first"))
            continue
        try:
            found.append(_candidate(model.name, mixed))
        except FacezooError as error:
            found.append(Candidate(model.name, reason=f"cannot be loaded: {error}"))
    return tuple(found)


def _candidate(name: str, gallery: tuple[str, str] | None) -> Candidate:
    """One candidate; the gallery is its path and its hash."""
    resolved = resolve_model(name)
    info = registry.method_info(resolved.method)
    documented = registry.load_options_class(info.name).documented()
    options: dict[str, object] = {}
    described: dict[str, object] = {}
    if "randomness" in documented:
        # Figures that can be made again; privacy as such does not depend on where the noise comes from.
        options["randomness"] = described["randomness"] = "seeded"
    if "gallery" in documented:
        # Open: the measured faces need not be the gallery's pictures.
        options |= {"mode": "open", "repeated_people": "first"}
        if gallery is not None:
            options["gallery"] = gallery[0]
        if "utility" in documented:
            options["utility"] = "sex"  # of the labels that galleries have, the one whose values are never rare
        described |= {**options, "gallery": "of the measured set" if gallery is None else gallery[1]}
    content = {
        "method": info.name,
        "checkpoint": resolved.weights_sha256,
        "options": described,
        "sources": _sources_sha256(info.entry.partition(":")[0]),
    }
    digest = sha256_bytes(json.dumps(content, sort_keys=True).encode())
    return Candidate(resolved.name, name, options, digest, resolved.weights_sha256)


def _sources_sha256(module: str) -> str:
    """Hash of the Python files of a method's room: another code is another model."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    digest = hashlib.sha256()
    for path in sorted(Path(spec.origin).parent.glob("*.py")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _judge_sha256(judge: Recogniser) -> str:
    digest = hashlib.sha256(f"{judge.name} {judge.metric}".encode())
    for name, value in sorted(judge.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _protocol_sha256(settings: EvaluationSettings, judges: Sequence[Recogniser]) -> str:
    """Of everything in the settings that changes a figure; how fast or how visibly it is made does not."""
    content = {name: value for name, value in asdict(settings).items() if name not in ("progress", "device", "judges")}
    content |= {"version": PROTOCOL_VERSION, "judges": {judge.name: _judge_sha256(judge) for judge in judges}}
    return sha256_bytes(json.dumps(content, sort_keys=True).encode())


# --------------------------------------------------------------------------------------------------------------------
# one model


class _Watched:
    """A subject of ``evaluate_model`` that keeps each face's first result, and draws chance from the seed."""

    def __init__(self, anonymizer: Anonymizer, seed: int) -> None:
        self._anonymizer = anonymizer
        self._seed = seed
        # By the original's content; None: the method failed for it. Later results (of another key) are not kept.
        self._kept: dict[bytes, tuple[ByteArray, ByteArray] | None] = {}

    @property
    def method(self) -> Method:
        """What the method says about itself (crop size, key, recognisers of its training)."""
        return self._anonymizer.method

    @property
    def checkpoint_sha256(self) -> str:
        """Of the model's weights and configuration; "" without weights."""
        return self._anonymizer.checkpoint_sha256

    def anonymize_faces(self, faces: Tensor, key: Key | None = None) -> Tensor:
        """See ``FaceMethod``."""
        originals = to_pictures(faces)
        names = [_content(picture) for picture in originals]
        try:
            results = self._anonymizer.anonymize_faces(faces, key, seed=self._seed)
        except FacezooError:
            if len(faces) == 1:  # a bigger batch comes again, face by face
                self._kept.setdefault(names[0], None)
            raise
        for name, original, result in zip(names, originals, results, strict=True):
            if name not in self._kept:
                finite = bool(torch.isfinite(result).all())
                self._kept[name] = (original, to_pictures(result[None])[0]) if finite else None
        return results

    def recover_faces(self, faces: Tensor, key: Key | None = None) -> Recovered:
        """See ``FaceMethod``."""
        return self._anonymizer.recover_faces(faces, key)

    def pairs(self) -> tuple[ByteArray, ByteArray]:
        """Originals and results (N, S, S, 3) of the faces for which the method did not fail."""
        kept = [pair for pair in self._kept.values() if pair is not None]
        return np.stack([pair[0] for pair in kept]), np.stack([pair[1] for pair in kept])


def _content(picture: ByteArray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(picture).tobytes()).digest()


class _Measurer:
    """The data, the judges and what they know, for all models of a run."""

    def __init__(self, data: PackedFaces, settings: EvaluationSettings, judges: Sequence[Recogniser]) -> None:
        self.data = data
        self.judges = [RememberingRecogniser(judge) for judge in judges]
        self.settings = settings
        self._labels = _group_labels(data)
        self._rows: dict[int, dict[bytes, int]] = {}

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        """Everything about one model.

        Raises:
            FacezooError: the method's own, if it fails for every face.
        """
        detector = self.settings.detector
        options: dict[str, Any] = dict(candidate.options)
        added, people = own_people(candidate.place, self.data.path, options)
        options |= added
        anonymizer = from_pretrained(candidate.place, device=self.settings.device, **options)
        count = min(self.settings.limit or len(self.data), len(self.data))
        subject = _Watched(anonymizer, self.settings.seed)
        settings = replace(self.settings, detector=None if detector is None else remembering_detector(detector))
        evaluation = evaluate_model(subject, self.data, name=anonymizer.model, judges=self.judges, settings=settings)
        evaluation["detector"] = detector
        if people:
            evaluation["notes"].append(f"People to hide among: {people}.")
        originals, results = subject.pairs()
        return {
            "evaluation": evaluation,
            "utility": self._utility(originals, results, count),
            "groups": self._groups(originals, results, evaluation),
        }

    def _utility(self, originals: ByteArray, results: ByteArray, count: int) -> dict[str, Any]:
        likeness: dict[str, list[npt.NDArray[np.float64]]] = {"psnr": [], "ssim": []}
        size = self.settings.batch_size
        for start in range(0, len(originals), size):
            first, second = to_tensor(originals[start : start + size]), to_tensor(results[start : start + size])
            likeness["psnr"].append(psnr(first, second).double().numpy())
            likeness["ssim"].append(ssim(first, second).double().numpy())
        figures: dict[str, Any] = {
            name: bootstrap_mean(np.concatenate(values), self.settings.seed).to_dict()
            for name, values in likeness.items()
        }
        # A face for which the method failed has no result: it is in `failed`, and counts as not detected.
        figures["failed"] = count - len(originals)
        figures["places"] = None
        if self.settings.detector is not None:
            smallest = max(4.0, originals.shape[1] / 4)
            options = DetectorOptions(minimum_face=smallest, rotations=False, steady=False)
            detector = get_detector(remembering_detector(self.settings.detector), options)
            known, found = find_faces(originals, detector), find_faces(results, detector)
            if any(face is not None for face in known):
                figures["places"] = compare_found(known, found, self.settings.seed)
        return figures

    def _groups(
        self, originals: ByteArray, results: ByteArray, evaluation: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Attribute -> value -> n, and by judge the part that is still taken for the original."""
        if not self._labels:
            return {}
        rows = self._rows_of(originals)
        main = f"far_{self.settings.far[0]:g}"
        taken: dict[str, npt.NDArray[np.bool_]] = {}
        for judge in self.judges:
            own = evaluation["judges"][judge.name]["thresholds"][main]
            threshold = own if judge.metric == "cosine" else -own
            scores = similarity(self._embed(judge, results), self._embed(judge, originals), judge.metric)
            taken[judge.name] = scores >= threshold
        groups: dict[str, dict[str, Any]] = {}
        for name, labels in self._labels.items():
            here = np.where(rows >= 0, labels[rows], -1)
            groups[name] = {
                value: {
                    "n": int((here == index).sum()),
                    "taken": {
                        judge: wilson(int(flags[here == index].sum()), int((here == index).sum())).to_dict()
                        for judge, flags in taken.items()
                    },
                }
                for index, value in enumerate(ATTRIBUTES[name].values)
                if (here == index).any()
            }
        return groups

    def _embed(self, judge: Recogniser, pictures: ByteArray) -> npt.NDArray[np.float64]:
        size = self.settings.batch_size
        parts = []
        for start in range(0, len(pictures), size):
            with torch.inference_mode():
                faces = to_tensor(pictures[start : start + size], self.settings.device)
                parts.append(judge(faces).double().cpu().numpy())
        return np.concatenate(parts)

    def _rows_of(self, originals: ByteArray) -> npt.NDArray[np.int64]:
        """Which picture of the set each original is; -1 where that cannot be told."""
        size = originals.shape[1]
        if size not in self._rows:
            known: dict[bytes, int] = {}
            window = None if size == self.data.size else TemplateWindow(size, 128.0 / size, 0.0, 0.0)
            for row in range(len(self.data)):
                picture = self.data.batch([row])
                if window is not None:  # as the protocol does it
                    picture = to_pictures(window(to_tensor(picture)))
                known[_content(picture)] = row
            self._rows[size] = known
        return np.array([self._rows[size].get(_content(picture), -1) for picture in originals], dtype=np.int64)


def _group_labels(data: PackedFaces) -> dict[str, npt.NDArray[np.int16]]:
    """Labels of the attributes that the set has."""
    found = {}
    for name in GROUPS:
        try:
            found[name] = labels_of(data, [name])[:, 0]
        except InputError:  # the set has no labels of it
            continue
    return found


def label_sources(data: PackedFaces) -> dict[str, str]:
    """Where the labels of each group come from, and how far they can be trusted."""
    told = json.loads(data.metadata.get("attributes", "{}"))
    sources = {}
    for name in _group_labels(data):
        entry = told.get(name)
        if entry is None:
            sources[name] = "the set's own labels"
        else:
            agreement = entry.get("agreement")
            sources[name] = str(entry["source"]) + (f" ({agreement:.0%})" if agreement is not None else "")
    return sources


# --------------------------------------------------------------------------------------------------------------------
# all models


def result_file(folder: Path, name: str, key: str) -> Path:
    """The file of one result."""
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.{key[:12]}.json"


def _read_result(path: Path, key: str) -> dict[str, Any] | None:
    """A finished result; None where there is none.

    Raises:
        OutputError: the file is something else: it is not overwritten.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["facezoo_benchmark"] == 1 and content["key"] == key:
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise OutputError(f"{path} is no result of this benchmark; move it away, or choose another folder with -o")


def run_benchmark(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    models: Sequence[str] = (),
    gallery: str | os.PathLike[str] | None = None,
    settings: EvaluationSettings | None = None,
    judges: Sequence[Recogniser] | None = None,
    max_minutes: float | None = None,
) -> tuple[Outcome, ...]:
    """Measures every model that has no result yet.

    Args:
        data: packed set of the evaluation split, or a folder with one.
        output: folder of the results.
        models: see ``list_candidates``.
        gallery: see ``list_candidates``.
        settings: of the protocol; None: the defaults.
        judges: recognisers; None: those of the settings.
        max_minutes: no model is begun after this time; the next run goes on.

    Returns:
        One outcome a model, in the order of ``facezoo list``. A model that fails has its error as the reason, and is
        tried again by the next run.

    Raises:
        InputError: data that cannot be used.
        OutputError: a result cannot be written, or its name is taken by something else.
    """
    settings = settings or EvaluationSettings()
    packed = find_packed(data)
    folder = Path(output)
    candidates = list_candidates(models, gallery=gallery)
    if judges is None:
        judges = [load_recogniser(name) for name in settings.judges or list_recognisers()]
    data_sha256 = sha256_file(packed.path)
    protocol_sha256 = _protocol_sha256(settings, judges)
    measurer = _Measurer(packed, settings, judges)
    outcomes = []
    started = time.monotonic()
    for number, candidate in enumerate(candidates, 1):
        hashes = {"model_sha256": candidate.sha256, "data_sha256": data_sha256, "protocol_sha256": protocol_sha256}
        key = sha256_bytes(json.dumps(hashes, sort_keys=True).encode())
        path = result_file(folder, candidate.name, key)
        result = None if candidate.reason else _read_result(path, key)
        reason = candidate.reason
        cached = result is not None
        if result is None and not reason:
            if max_minutes is not None and time.monotonic() - started > 60 * max_minutes:
                reason = "not measured yet: the time was up; run the same command again to go on"
            else:
                _say(settings, f"[{number}/{len(candidates)}] {candidate.name}")
                begun = time.monotonic()
                try:
                    measured = measurer.measure(candidate)
                except FacezooError as error:
                    reason = f"failed: {error}"
                else:
                    result = {
                        "facezoo_benchmark": 1,
                        "key": key,
                        **hashes,
                        "checkpoint_sha256": candidate.checkpoint_sha256,
                        "protocol_version": PROTOCOL_VERSION,
                        "options": {n: v for n, v in candidate.options.items() if n != "gallery"},
                        "label_sources": label_sources(packed),
                        "minutes": (time.monotonic() - begun) / 60,
                        **measured,
                    }
                    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
                    atomic_write(path, text.encode(), make_parents=True)
        elif cached:
            _say(settings, f"[{number}/{len(candidates)}] {candidate.name}: measured already")
        outcomes.append(Outcome(candidate, result, cached, reason))
    return tuple(outcomes)


def _say(settings: EvaluationSettings, text: str) -> None:
    if settings.progress:
        print(text, file=sys.stderr)
