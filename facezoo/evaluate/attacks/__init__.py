"""Attacks on anonymized pictures, each with its budget (docs/measuring.md)."""

from __future__ import annotations

from facezoo.evaluate.attacks.base import Attack, AttackSettings, Outcome, Scene
from facezoo.evaluate.attacks.run import ATTACKS, attack_model, run_attack

__all__ = ["ATTACKS", "Attack", "AttackSettings", "Outcome", "Scene", "attack_model", "run_attack"]
