"""``facezoo attack``: a model's name in, one JSON file and one line out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from facezoo.data.packed import PackedFaces
from facezoo.errors import UnknownNameError
from facezoo.evaluate.attacks.averaging import AverageOverKeys
from facezoo.evaluate.attacks.base import Attack, AttackSettings, Scene
from facezoo.evaluate.attacks.deblurring import Deblurring
from facezoo.evaluate.attacks.inversion import Inversion
from facezoo.evaluate.attacks.key_guessing import KeyGuessing
from facezoo.evaluate.attacks.linkability import Linkability
from facezoo.evaluate.attacks.parrot import Parrot
from facezoo.evaluate.protocol import hardware
from facezoo.files import atomic_write, check_output, sha256_file
from facezoo.recognition import Recogniser

__all__ = ["ATTACKS", "attack_model", "run_attack"]

ATTACKS: Final[Mapping[str, type[Attack]]] = MappingProxyType(
    {kind.name: kind for kind in (Linkability, Parrot, Inversion, KeyGuessing, AverageOverKeys, Deblurring)}
)
"""Every attack by its name on the command line."""


def attack_model(
    subject: object,
    data: PackedFaces | str | os.PathLike[str],
    attack: str,
    *,
    name: str,
    settings: AttackSettings | None = None,
    attacker_data: PackedFaces | str | os.PathLike[str] | None = None,
    judges: Sequence[Recogniser] | None = None,
) -> dict[str, Any]:
    """Attacks a method.

    Args:
        subject: a ``facezoo.Anonymizer``, a ``Method``, or any object with ``anonymize_faces`` and ``recover_faces``.
        data: packed set of the victims; no person of it may have been trained on.
        attack: a name of `ATTACKS`.
        name: name of the subject in the report.
        settings: see `AttackSettings`; None: the defaults.
        attacker_data: packed set of the attacker's own faces; None: half of the people of ``data``, by a hash of their
            names, are the attacker's, and the other half the victims.
        judges: recognisers; None: those of the settings.

    Returns:
        A plain dict, ready for JSON: n, people, budget (allowed and spent), seed, judges, figures, finding, hardware.

    Raises:
        UnknownNameError: no such attack.
        InputError: the attack says nothing about the method, or there are too few faces.
        FacezooError: the method's own error, if it fails for every face.
    """
    if attack not in ATTACKS:
        raise UnknownNameError(f"there is no attack {attack!r}; there are {', '.join(ATTACKS)}")
    settings = settings or AttackSettings()
    packed = data if isinstance(data, PackedFaces) else PackedFaces(data)
    own = PackedFaces(attacker_data) if isinstance(attacker_data, str | os.PathLike) else attacker_data
    scene = Scene(subject, packed, settings, own, judges)
    made = ATTACKS[attack](settings)
    started = time.time()
    try:
        outcome = made.run(scene)
    finally:
        scene.bar.close()
    taught = {judge.name: scene.taught(judge) for judge in scene.judges}
    return {
        "facezoo_attack": 1,
        "attack": attack,
        "summary": made.summary,
        "name": name,
        "method": scene.info.name if scene.info else type(subject).__name__,
        "data": packed.path.name,
        "data_sha256": sha256_file(packed.path),
        "attacker_data": None if own is None else own.path.name,
        "model_sha256": getattr(subject, "checkpoint_sha256", "") or None,
        "n": outcome.n,
        "size": scene.size,
        "budget": made.spending.to_dict(),
        "seed": settings.seed,
        "judges": {
            judge.name: {
                "metric": judge.metric,
                "thresholds": {kind: judge.own_unit(value) for kind, value in judge.thresholds.items()},
                "took_part_in_training": taught[judge.name] is not None,
                "why": taught[judge.name],
            }
            for judge in scene.judges
        },
        "figures": outcome.figures,
        "finding": outcome.finding + (f"; false accept rate {scene.judges[0].far[0]:g}" if made.judged else ""),
        "hardware": hardware(settings.device),
        "seconds": time.time() - started,
    }


def run_attack(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    attack: str,
    output: str | os.PathLike[str],
    *,
    settings: AttackSettings | None = None,
    attacker_data: str | os.PathLike[str] | None = None,
    options: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Loads a model, attacks it and writes one JSON file.

    Args:
        model: as ``facezoo.from_pretrained`` takes it.
        data: see `attack_model`.
        attack: see `attack_model`.
        output: the JSON file.
        settings: see `AttackSettings`.
        attacker_data: see `attack_model`.
        options: of the method.
        overwrite: whether an older file may be replaced.

    Returns:
        What `attack_model` returned.

    Raises:
        OutputError: the file exists or cannot be written; checked before the work.
        FacezooError: as ``from_pretrained`` and `attack_model`.
    """
    from facezoo.anonymizer import Anonymizer
    from facezoo.hub.manifest import resolve_model

    settings = settings or AttackSettings()
    if attack not in ATTACKS:
        raise UnknownNameError(f"there is no attack {attack!r}; there are {', '.join(ATTACKS)}")
    target = Path(output)
    check_output(target, overwrite, make_parents=True)
    packed = PackedFaces(data)
    own = None if attacker_data is None else PackedFaces(attacker_data)
    anonymizer = Anonymizer.from_model(resolve_model(os.fspath(model)), device=settings.device, options=options)
    result = attack_model(anonymizer, packed, attack, name=anonymizer.model, settings=settings, attacker_data=own)
    atomic_write(target, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n", overwrite, make_parents=True)
    return result
