"""Which people are kept for evaluation and never trained on.

The rule is a hash of the name, so it needs no list, stays the same on every machine, and a person who is added to a
set later falls on the same side everywhere.
"""

from __future__ import annotations

import hashlib

EVALUATION_SALT = "facezoo-evaluation:"
"""Prefix of the hashed text; changing it would move people between the splits, so it is fixed for good."""

EVALUATION_THRESHOLD = 26
"""A name is evaluation when the first byte of its hash is below this: 26 / 256, about 10 % of people."""


def is_evaluation(identity: str) -> bool:
    """Say on which side of the split a person falls.

    Args:
        identity: the person's name exactly as the set writes it (lfw128: the ``identity`` column). Sets with one
            picture a person use the file name instead (aaf128: the ``file`` column, extension included).

    Returns:
        True when the person belongs to the evaluation split.

    Raises:
        ValueError: the name is empty. An empty name would put every unnamed picture on one side.
    """
    if not identity:
        raise ValueError("is_evaluation needs a name: give the identity, or the file name for sets without identities")
    digest = hashlib.sha256((EVALUATION_SALT + identity).encode("utf-8")).digest()
    return digest[0] < EVALUATION_THRESHOLD
