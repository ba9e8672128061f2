"""Model cards: made from manifest and results alone, and known to be stale when either changes."""

from __future__ import annotations

import json

import pytest

from facezoo.errors import InputError
from facezoo.hub import card
from facezoo.hub.manifest import read_manifest
from tests.tiny_method import write_tiny_checkpoint


@pytest.fixture
def places(tmp_path):
    root, cards = tmp_path / "checkpoints", tmp_path / "MODEL_CARDS"
    write_tiny_checkpoint(root / "tiny_swap.test")
    return ["--checkpoints", str(root), "--cards", str(cards)]


def test_cards_are_written_and_checked(places, tmp_path, capsys):
    assert card.main([*places, "--check"]) == 1
    assert not (tmp_path / "MODEL_CARDS").exists()
    assert card.main(places) == 0
    assert card.main([*places, "--check"]) == 0
    path = tmp_path / "MODEL_CARDS" / "tiny_swap.test.md"
    text = path.read_text()
    assert "Nothing was measured" in text
    assert (
        read_manifest(tmp_path / "checkpoints" / "tiny_swap.test")[0]["files"]["generator.safetensors"]["sha256"]
        in text
    )

    results = tmp_path / "MODEL_CARDS" / "results" / "tiny_swap.test.json"
    results.parent.mkdir()
    results.write_text(
        json.dumps(
            {
                "protocol": "500 faces of the evaluation split",
                "measured": {"taken for the original": {"value": 0.02134, "goal": "<= 0.05"}, "PSNR": 25.5},
                "tables": {"Attacks": [{"attack": "guess | six digits", "rate": 1.0}]},
                "notes": ["JPEG was not measured."],
            }
        )
    )
    assert card.main([*places, "--check"]) == 1
    assert card.main(places) == 0
    text = path.read_text()
    assert "| taken for the original | 0.02134 | <= 0.05 |" in text
    assert "guess \\| six digits" in text
    assert "- JPEG was not measured." in text

    # A card whose checkpoint is gone is stale too; a page written by hand is left alone.
    (tmp_path / "MODEL_CARDS" / "README.md").write_text("by hand")
    (tmp_path / "checkpoints" / "tiny_swap.test" / "manifest.json").unlink()
    assert card.main([*places, "--check"]) == 1
    assert "README" not in capsys.readouterr().out


def test_damaged_results_are_refused(places, tmp_path):
    results = tmp_path / "MODEL_CARDS" / "results" / "tiny_swap.test.json"
    results.parent.mkdir(parents=True)
    for content in ("{", "[]", '{"measured": [1]}', '{"tables": {"x": 3}}'):
        results.write_text(content)
        assert card.main(places) == 2
    assert not (tmp_path / "MODEL_CARDS" / "tiny_swap.test.md").exists()


def test_sections_of_the_manifest_come_in_order():
    manifest = {
        "name": "tiny_swap.test", "method": "tiny_swap", "summary": "one line", "version": "1", "status": "trained",
        "crop_size": 64, "licence": "Apache-2.0", "files": {}, "metrics": {"psnr": 25.0}, "config": {}, "training": {},
        "preprocessing": {}, "card": {"Zeal": "z", "Limits": ["one", "two"], "What it does": "it swaps"},
    }  # fmt: skip
    text = card.card_text(manifest)
    assert text.index("## What it does") < text.index("## Limits") < text.index("## Zeal") < text.index("## Measured")
    assert "- one\n- two" in text
    assert "| psnr | 25 |" in text
    with pytest.raises(InputError):
        card.card_text(manifest, {"tables": []})


def test_a_generators_card_shows_how_people_are_made(tmp_path):
    from facezoo.hub.manifest import write_checkpoint

    manifest = {"name": "stylegan2.test", "method": "stylegan2", "config": {}, "crop_size": 64, "summary": "people"}
    text = card.card_text(write_checkpoint(tmp_path / "stylegan2.test", manifest, {}))
    assert "facezoo generate --model stylegan2.test" in text
    assert "from_pretrained" not in text
    assert "reversible" not in text
