"""The budget of a folder's run, from the command line: charged, refused when spent, and gone on with."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import files_under, portrait

DP = ("--model", "dp_pix", "--verify", "off", "--epsilon", "4")


@pytest.fixture
def people(tmp_path):
    folder = tmp_path / "people"
    for person, name in (("ann", "astronaut.jpg"), ("bob", "obama.jpg")):
        (folder / person).mkdir(parents=True)
        portrait(name).save(folder / person / "1.png")
    portrait().rotate(3).save(folder / "ann" / "2.png")
    return folder


def test_the_same_person_twice_costs_twice_and_the_rest_is_refused(cli, people, tmp_path):
    out = tmp_path / "out"
    run = cli("anonymize", people, "-o", out, *DP, "--budget", "4", "--budget-people", "folder")
    assert run.code == 2
    assert "privacy budget of ann is spent" in run.err
    pictures = [name for name in files_under(out) if name.endswith(".png")]
    assert pictures == ["ann/1.png", "bob/1.png"]
    record = json.loads((out / "ann" / "1.png.facezoo.json").read_text())
    assert record["options"]["method"]["epsilon"] == 4
    assert "guarantee" in record["options"]["method"]
    held = json.loads((out / ".facezoo-budget.json").read_text())
    assert {name: entry["epsilon"] for name, entry in held["people"].items()} == {"ann": 4, "bob": 4}

    # Again: what is finished costs nothing more, what is spent stays spent.
    again = cli("anonymize", people, "-o", out, *DP, "--budget", "4", "--budget-people", "folder")
    assert again.code == 2
    assert json.loads((out / ".facezoo-budget.json").read_text()) == held
    assert "2 finished before" in again.out


def test_everybody_in_one_account_is_the_default(cli, people, tmp_path):
    run = cli("anonymize", people, "-o", tmp_path / "out", *DP, "--budget", "8")
    assert "privacy budget of everyone is spent" in run.err
    assert len([n for n in files_under(tmp_path / "out") if n.endswith(".png")]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "dp_pix", "--epsilon", "0"), "epsilon must be a number"),
        (("--model", "dp_pix", "--epsilon", "-1"), "epsilon must be a number"),
        (("--model", "gaussian_blur", "--epsilon", "1"), "has no option 'epsilon'"),
        (("--model", "dp_pix", "--epsilon", "1", "--option", "epsilon=2"), "given twice"),
        (("--model", "dp_pix", "--budget", "4"), "--ledger FILE"),
        (("--model", "dp_pix", "--budget", "0", "--ledger", "l.json"), "above 0"),
        (("--model", "dp_pix", "--budget", "lots", "--ledger", "l.json"), "write an epsilon"),
        (("--model", "dp_pix", "--ledger", "l.json"), "--budget"),
        (("--model", "dp_pix", "--budget-people", "folder"), "needs --budget"),
        (("--model", "gaussian_blur", "--budget", "4", "--ledger", "l.json"), "no epsilon that a budget could count"),
        (("--model", "dp_svd", "--budget", "4", "--ledger", "l.json"), "could count"),
        (("--model", "dp_pix", "--option", "randomness=seeded", "--budget", "4", "--ledger", "l.json"), "from a seed"),
    ],
)
def test_refused_in_one_line_and_nothing_is_written(cli, face_file, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    run = cli("anonymize", face_file, "-o", "x.png", *arguments)
    assert run.code == 2
    assert message in run.error_line()
    assert files_under(tmp_path) == []
