"""The budget: the same person twice costs twice, what is spent is refused, and nothing is forgotten."""

from __future__ import annotations

import json
import multiprocessing

import pytest

from facezoo.batch import Job, Settings, person_of
from facezoo.errors import InputError
from facezoo.privacy.accounting import Cost
from facezoo.privacy.guarantee import Guarantee
from facezoo.privacy.ledger import BudgetSpentError, Ledger, Spent


def promise(epsilon: float = 6.0, delta: float = 0.0, **changes) -> Guarantee:
    words = {"protects": "a", "neighbours": "b", "leaks": "c", "holds": True, "reason": "d", **changes}
    return Guarantee(Cost(epsilon, delta), **words)


def test_the_same_person_twice_costs_twice_and_then_it_is_spent(tmp_path):
    ledger = Ledger(tmp_path / "l.json", Cost(12.0))
    assert ledger.charge("ann", promise(), 1) == Spent(6.0, 0.0, 1)
    assert ledger.charge("ann", promise(), 1) == Spent(12.0, 0.0, 2)
    with pytest.raises(BudgetSpentError, match=r"budget of ann is spent: epsilon 12 of epsilon 12 in 2 faces"):
        ledger.charge("ann", promise(), 1)
    with pytest.raises(BudgetSpentError, match="nothing was written"):
        ledger.check("ann", promise())
    assert ledger.charge("bob", promise(), 2) == Spent(12.0, 0.0, 2)
    assert ledger.spent("ann") == Spent(12.0, 0.0, 2), "what was refused is not charged"


def test_a_picture_with_more_faces_than_are_left_is_refused_as_a_whole(tmp_path):
    ledger = Ledger(tmp_path / "l.json", Cost(12.0))
    with pytest.raises(BudgetSpentError):
        ledger.charge("everyone", promise(), 3)
    assert ledger.spent() == Spent()
    assert not (tmp_path / "l.json").exists()


def test_a_later_run_goes_on_where_the_first_stopped(tmp_path):
    Ledger(tmp_path / "l.json", Cost(1.0, 1e-5)).charge("ann", promise(0.25, 2e-6), 3)
    again = Ledger(tmp_path / "l.json")
    assert again.budget == Cost(1.0, 1e-5)
    assert again.spent("ann").releases == 3
    again.charge("ann", promise(0.25, 2e-6), 1)  # sums that reach the budget exactly are allowed
    with pytest.raises(BudgetSpentError):
        again.charge("ann", promise(0.01), 1)
    with pytest.raises(InputError, match="a budget that grows is none"):
        Ledger(tmp_path / "l.json", Cost(2.0, 1e-5))


def test_delta_is_a_budget_too(tmp_path):
    ledger = Ledger(tmp_path / "l.json", Cost(100.0))
    with pytest.raises(BudgetSpentError, match="delta"):
        ledger.charge("ann", promise(1.0, 1e-6), 1)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": "facezoo-budget"}', "minus"])
def test_a_damaged_ledger_releases_nothing(tmp_path, damage):
    path = tmp_path / "l.json"
    Ledger(path, Cost(10.0)).charge("ann", promise(), 1)
    if damage == "minus":
        content = json.loads(path.read_text())
        content["people"]["ann"]["epsilon"] = -50
        damage = json.dumps(content)
    path.write_text(damage)
    with pytest.raises(InputError, match="damaged"):
        Ledger(path, Cost(10.0))


def test_what_cannot_be_counted(tmp_path):
    ledger = Ledger(tmp_path / "l.json", Cost(10.0))
    for guarantee, message in (
        (None, "no epsilon"),
        (promise(holds=False, reason="NOT a bound"), "NOT a bound"),
        (promise(countable=False), "could count"),
    ):
        with pytest.raises(InputError, match=message):
            ledger.charge("ann", guarantee, 1)
    with pytest.raises(InputError, match="--budget"):
        Ledger(tmp_path / "other.json")
    with pytest.raises(InputError, match="above 0"):
        Ledger(tmp_path / "other.json", Cost(0.0))


def _spend(path: str, times: int) -> None:
    ledger = Ledger(path)
    for _ in range(times):
        ledger.charge("ann", promise(1.0), 1)


def test_workers_share_a_ledger(tmp_path):
    path = tmp_path / "l.json"
    Ledger(path, Cost(1000.0)).charge("ann", promise(1.0), 1)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_spend, args=(str(path), 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Ledger(path).spent("ann") == Spent(61.0, 0.0, 61)


def test_whose_account(tmp_path):
    job = Job(tmp_path / "x.jpg", tmp_path / "y.png", "ann/holiday/x.jpg")
    assert person_of(job, Settings("anonymize")) == "everyone"
    assert person_of(job, Settings("anonymize", budget_people="folder")) == "ann"
    with pytest.raises(InputError, match="in no sub-folder"):
        person_of(Job(job.source, job.target, "x.jpg"), Settings("anonymize", budget_people="folder"))
