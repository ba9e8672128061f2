"""Attacks on dp_kanonymity's promise to the people of its reference set: repeats, and what k-anonymity falls to.

Most distributions here are exact: every Poisson sample of a few people is enumerated, so that a loss is a number and
not an estimate.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from facezoo.data.packed import write_packed
from facezoo.errors import InputError
from facezoo.methods.base import FaceContext
from facezoo.methods.dp_kanonymity.config import DPKAnonymityConfig
from facezoo.methods.dp_kanonymity.method import DPKAnonymity
from facezoo.methods.dp_kanonymity.model import DPKAnonymityNetworks
from facezoo.methods.dp_kanonymity.reference import ReferenceSet
from facezoo.methods.dp_kanonymity.selection import (
    UTILITY_SENSITIVITY,
    average_attributes,
    neighbour_votes,
    selection_cost,
)
from facezoo.privacy.accounting import basic_composition
from facezoo.privacy.audit import privacy_loss

COUNT, TAU, K, GAMMA, EPSILON = 3, 2.0, 3, 0.4, 0.6
COST = selection_cost(EPSILON, TAU, COUNT, GAMMA).epsilon


def outputs(reference: ReferenceSet, query: Tensor) -> Tensor:
    """Probability of each of the 8 answers, (8,), over every sample of the people."""
    features, attributes = reference.nearest(query)
    total = torch.zeros(2**COUNT, dtype=torch.float64)
    for size in range(len(reference) + 1):
        weight = GAMMA**size * (1 - GAMMA) ** (len(reference) - size)
        for sample in itertools.combinations(range(len(reference)), size):
            rows = torch.tensor(sample, dtype=torch.int64)
            votes = neighbour_votes(query, features[rows], attributes[rows], K, TAU)
            has = torch.sigmoid(EPSILON * (2 * votes - K) / (2 * UTILITY_SENSITIVITY))
            answers = torch.tensor(list(itertools.product((0, 1), repeat=COUNT)))
            total += weight * torch.where(answers == 1, has, 1 - has).prod(1)
    assert float(total.sum()) == pytest.approx(1)
    return total


def loss(one: Tensor, other: Tensor) -> float:
    return float((one.log() - other.log()).abs().max())


def without(reference: ReferenceSet, person: int) -> ReferenceSet:
    rows = reference.people != person
    _, people = np.unique(reference.people[rows].numpy(), return_inverse=True)
    return ReferenceSet(reference.features[rows], reference.attributes[rows], torch.from_numpy(people))


def crowd(pictures: list[int], seed: int) -> ReferenceSet:
    """People with so many pictures each, all different."""
    rng = torch.Generator().manual_seed(seed)
    people = torch.tensor([person for person, number in enumerate(pictures) for _ in range(number)])
    features = torch.randn(len(people), 2, generator=rng)
    return ReferenceSet(features, torch.randint(2, (len(people), COUNT), generator=rng), people)


# One person, many pictures


class Looks(nn.Module):
    """Features and attributes that a test can paint: a picture's mean colour, and which channels are bright."""

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        mean = crops.mean((2, 3))
        return mean, mean


def method_and_sets(folder: Path) -> tuple[DPKAnonymity, list[str]]:
    """The method with ``Looks``, and two sets: forty dark people; the same with a bright one, shown thirty times."""
    torch.manual_seed(0)
    narrow = {"generator_widths": (4, 4, 4), "stu_levels": 1, "discriminator_widths": (4, 4, 4), "feature_dim": 4}
    config = DPKAnonymityConfig(size=32, classifier_widths=(4,), classifier_blocks=(1,), **narrow)
    method = DPKAnonymity(DPKAnonymityNetworks(config))
    method.networks.classifier = Looks()
    rng = np.random.default_rng(1)
    dark = rng.integers(10, 60, (40, 1, 1, 3)) + np.zeros((1, 32, 32, 1), np.int64)
    bright = rng.integers(180, 220, (30, 1, 1, 3)) + np.zeros((1, 32, 32, 1), np.int64)
    names = [f"p{i}" for i in range(40)]
    paths = []
    for name, pictures, people in (
        ("without", dark, names),
        ("with", np.concatenate([dark, bright]), names + ["often"] * 30),
    ):
        path = folder / f"{name}.safetensors"
        files = [f"{i}.png" for i in range(len(people))]
        write_packed(path, iter(pictures.astype(np.uint8)), size=32, identities=people, files=files, source="invented")
        paths.append(str(path))
    return method, paths


def test_a_person_shown_thirty_times_costs_what_the_record_says(tmp_path):
    """Counted by pictures this person would be all of the k neighbours, and the loss tens of times the promise."""
    method, paths = method_and_sets(tmp_path)
    options = {"k": 20, "gamma": 1.0, "epsilon": 0.5, "tau": 1.0}
    face = torch.full((200, 3, 32, 32), 0.6)
    told = []
    for path in paths:
        context = FaceContext(options={**options, "reference": path})
        chosen = method.attribute_choices(face, context).chosen
        told.append((chosen * torch.tensor([4, 2, 1])).sum(1).double().tolist())
    promised = method.guarantee(FaceContext(options=options)).cost.epsilon
    assert promised == pytest.approx(1.0)
    assert privacy_loss(*told).allows(promised)
    assert "a person votes once" in method.guarantee(FaceContext(options=options)).reason


def test_k_and_the_sample_count_people(tmp_path):
    method, (_, path) = method_and_sets(tmp_path)
    with pytest.raises(InputError, match=r"k=50 is more than the 41 people that a sample of 1 of the 41"):
        method.anonymize(torch.zeros(1, 3, 32, 32), FaceContext(options={"reference": path, "k": 50, "gamma": 1.0}))


def test_one_picture_under_two_names_is_refused(tmp_path):
    method, _ = method_and_sets(tmp_path)
    picture = np.full((32, 32, 3), 100, np.uint8)
    other = np.full((32, 32, 3), 30, np.uint8)
    for names, refused in ((["ann", "ann", "bob"], False), (["ann", "bob", "cid"], True)):
        path = tmp_path / f"{refused}.safetensors"
        pictures = iter([picture, picture, other])
        write_packed(path, pictures, size=32, identities=names, files=["0", "1", "2"], source="invented")
        context = FaceContext(options={"reference": str(path), "k": 1, "gamma": 0.9})
        if refused:
            with pytest.raises(InputError, match="the same under two names"):
                method.anonymize(torch.zeros(1, 3, 32, 32), context)
        else:
            method.anonymize(torch.zeros(1, 3, 32, 32), context)


def test_somebodys_frequency_is_one_persons(tmp_path):
    reference = ReferenceSet(torch.zeros(4, 1), torch.tensor([[1], [1], [0], [0]]), torch.tensor([0, 0, 0, 1]))
    assert reference.frequencies().tolist() == pytest.approx([(2 / 3 + 0) / 2])


# What k-anonymity alone falls to (book, 3.1.2 and 4.5)


def test_homogeneity(tmp_path):
    """All neighbours share the attribute: their average tells it of every one of them; the mechanism hardly does."""
    query = torch.zeros(2)
    same = ReferenceSet(torch.randn(6, 2), torch.tensor([[1, 0, 0]] * 6), torch.arange(6))
    votes = neighbour_votes(query, *same.nearest(query), K, TAU)
    assert average_attributes(votes, K, []).tolist() == [1, 0, 0], "k-anonymity alone tells it"
    for person in range(6):
        assert loss(outputs(same, query), outputs(without(same, person), query)) <= COST


@pytest.mark.parametrize("pictures", [[1] * 7, [1, 5, 1, 2, 9, 1]])
def test_background_knowledge(pictures):
    """Who knows everybody else cannot tell, beyond the cost, whether a person is there: any person, any number of
    pictures, any answer, any face."""
    worst = 0.0
    for seed in range(4):
        reference = crowd(pictures, seed)
        query = torch.randn(2, generator=torch.Generator().manual_seed(100 + seed))
        whole = outputs(reference, query)
        worst = max(worst, *(loss(whole, outputs(without(reference, p), query)) for p in range(len(pictures))))
    assert 0.02 * COST < worst <= COST


def test_composition():
    """Many faces of one person, or many people's faces, spend the sum; one release's bound would be broken."""
    reference = crowd([1, 5, 1, 2, 9, 1], 0)
    queries = torch.randn(12, 2, generator=torch.Generator().manual_seed(9))
    worst = []
    for person in range(6):
        less = without(reference, person)
        # Samples are drawn anew, so answers are independent and their worst losses add up.
        worst.append(sum(loss(outputs(reference, query), outputs(less, query)) for query in queries))
    together = basic_composition([selection_cost(EPSILON, TAU, COUNT, GAMMA)] * len(queries)).epsilon
    assert COST < max(worst) <= together
    assert math.isclose(together, 12 * COST)
