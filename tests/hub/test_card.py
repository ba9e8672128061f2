"""Model cards: made from manifest and results alone, and known to be stale when either changes."""

from __future__ import annotations

import json

import pytest

from facezoo.errors import InputError
from facezoo.hub import card
from facezoo.hub.manifest import read_manifest, weights_sha256
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


def evaluation(n: int = 20) -> dict:
    """The parts of an evaluation that a card shows, with figures that can be told apart."""
    far = "far_0.001"

    def rate(value: float) -> dict:
        return {"value": value, "low": value / 2, "high": min(1.0, value * 2), "n": n}

    def part(value: float) -> dict:
        judged = {
            "taken": {far: rate(value)}, "cosine": rate(0.1),
            "rank_one": {"other_pictures": rate(0.01), "with_original": rate(0.02)},
        }  # fmt: skip
        return {"judges": {"dlib": judged}, "psnr": rate(31.27), "ssim": rate(0.9), "failed": 0, "detected": rate(0.95)}

    return {
        "facezoo_evaluation": 1, "name": "tiny_swap.test", "n": n, "people": 7, "gallery": 30, "far": [0.001],
        "data": "evaluation128.safetensors", "size": 64, "keys": 2, "seed": 3, "scope": "crops", "notes": [],
        "hardware": {"processor": "p", "gpu": None},
        "judges": {"dlib": {"metric": "euclidean", "took_part_in_training": False, "thresholds": {far: 0.52}}},
        "anonymized": {**part(0.1234), "seconds_a_face": 0.1}, "diversity": None, "sanity": {},
        "recovered": {"png": part(0.9876)}, "wrong_key": part(0.0432), "near_key": None,
    }  # fmt: skip


def test_the_header_is_the_hubs_own(places, tmp_path):
    import yaml
    from huggingface_hub import ModelCard

    results = tmp_path / "MODEL_CARDS" / "results" / "tiny_swap.test.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(evaluation()))
    assert card.main(places) == 0
    text = (tmp_path / "MODEL_CARDS" / "tiny_swap.test.md").read_text()
    assert text.startswith("---\n")
    fields = yaml.safe_load(text.split("---\n")[1])
    assert fields["library_name"] == "facezoo"
    assert fields["pipeline_tag"] == "image-to-image"
    data = ModelCard(text).data
    found = {result.metric_name: result for result in data.eval_results}
    taken = found["anonymized, taken for the original (dlib, FAR 0.001)"]
    assert (taken.metric_value, taken.metric_args["low"], taken.metric_args["n"]) == (0.1234, 0.0617, 20)
    assert found["recovered from PNG, PSNR in dB"].metric_value == 31.27
    assert found["wrong key, taken for the original (dlib, FAR 0.001)"].metric_value == 0.0432
    assert taken.dataset_type == "evaluation128"
    results.write_text(json.dumps({**evaluation(), "recovered": {"jpeg": 1}}))
    assert card.main(places) == 2


def test_groups_come_from_a_benchmark_of_this_very_checkpoint(places, tmp_path):
    folder = tmp_path / "benchmarks" / "results" / "benchmark"
    folder.mkdir(parents=True)
    digest = weights_sha256(read_manifest(tmp_path / "checkpoints" / "tiny_swap.test")[0])
    path = tmp_path / "MODEL_CARDS" / "tiny_swap.test.md"

    def result(n: int, checkpoint: str) -> str:
        rate = {"value": 1 / n, "low": 0.0, "high": 0.5, "n": n}
        groups = {"sex": {"female": {"n": n, "taken": {"dlib": rate}}}}
        content = {"checkpoint_sha256": checkpoint, "evaluation": evaluation(n), "groups": groups}
        return json.dumps({**content, "label_sources": {"sex": "the set's own labels"}})

    (folder / "tiny_swap.test.aaaa.json").write_text(result(50, "of another checkpoint"))
    assert card.main(places) == 0
    assert "Not measured yet by sex" in path.read_text()
    assert "Not stated by whoever made this checkpoint." in path.read_text()
    (folder / "tiny_swap.test.bbbb.json").write_text(result(20, digest))
    assert card.main([*places, "--check"]) == 1
    (folder / "tiny_swap.test.cccc.json").write_text(result(40, digest))
    assert card.main(places) == 0
    text = path.read_text()
    # The one with the most faces, and for want of another evaluation its figures.
    assert "| sex: female | 40 | 2.5 (0.0-50.0) |" in text
    assert "Labels: sex: the set's own labels." in text
    assert "40 faces of 7 people" in text
    assert card.main([*places, "--check"]) == 0
    (folder / "tiny_swap.test.cccc.json").write_text(json.dumps({"checkpoint_sha256": digest}))
    assert card.main([*places, "--check"]) == 2
