"""`facezoo recipes`: what ships is listed, copied with every field explained, and checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from facezoo.cli import main
from facezoo.core.recipe import TrainConfig, load_recipe
from facezoo.core.recipe_files import config_class, copy_recipe, field_docs, list_recipes, validate_recipe
from facezoo.errors import InputError
from facezoo.registry import list_methods

TRAINED = [info.name for info in list_methods(kind=None) if info.training]


def test_lists_every_file_with_its_cost(repository, capsys):
    assert main(["recipes", "list", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    files = {
        path.relative_to(repository / "recipes").with_suffix("").as_posix()
        for path in repository.glob("recipes/*/*.yaml")
    }
    assert set(listed) == files
    assert listed["identity_rotation/faces128_cpu"]["cost"].startswith("85 minutes on two cores")
    assert [name for name, entry in listed.items() if not entry["cost"]] == [], "every header says what it costs"
    for path in (repository / "recipes").glob("*/*.yaml"):
        header = path.read_text().partition("\nname:")[0]
        assert "facezoo train" in header, f"{path.name} does not say how it is launched"
    assert main(["recipes", "list"]) == 0
    assert "identity_rotation/faces128_cpu" in capsys.readouterr().out


@pytest.mark.parametrize("method", TRAINED)
def test_every_field_has_a_meaning(method):
    for kind in (TrainConfig, config_class(method)):
        fields = {field.name for field in dataclasses.fields(kind)}
        assert not fields - set(field_docs(kind)), kind.__name__


def test_a_copy_says_the_same_as_the_original_and_all_that_can_be_changed(tmp_path):
    for entry in list_recipes():
        path = copy_recipe(entry.name, tmp_path / f"{entry.name.replace('/', '-')}.yaml")
        original, copy = load_recipe(entry.name), load_recipe(path)
        kind = config_class(original.method)
        assert (copy.name, copy.summary, copy.data, copy.train) == (
            original.name,
            original.summary,
            original.data,
            original.train,
        )
        assert set(copy.config) == {field.name for field in dataclasses.fields(kind)}
        assert validate_recipe(path) == copy
        text = path.read_text()
        assert text.splitlines()[0].startswith("# "), "the header with the commands"
        assert "  # Decay of the averaged weights that ship.\n  ema_decay:" in text
        assert max(map(len, (line for line in text.splitlines() if line.startswith("  #")))) <= 120


def test_plain_copies_are_the_file(repository, tmp_path):
    copy_recipe("sdn/faces64_cpu", tmp_path, plain=True)
    assert (tmp_path / "faces64_cpu.yaml").read_bytes() == (repository / "recipes/sdn/faces64_cpu.yaml").read_bytes()
    assert main(["recipes", "copy", "sdn/faces64_cpu", str(tmp_path)]) == 7, "it exists"


def test_all_that_ship_are_valid(capsys):
    assert main(["recipes", "validate", "--all"]) == 0
    assert capsys.readouterr().out.count("ok  ") == len(list_recipes())


def test_mistakes_are_named(tmp_path: Path, capsys):
    name = "identity_rotation/faces128_cpu"
    assert main(["recipes", "validate", name, "--set", "config.lambda_idd=3"]) == 2
    assert "unknown key 'lambda_idd'; did you mean lambda_id" in capsys.readouterr().err
    assert main(["recipes", "validate", name, "--set", "train.batchsize=3"]) == 2
    assert "did you mean batch_size" in capsys.readouterr().err
    assert main(["recipes", "validate", name, "--set", "config.size=100"]) == 2
    assert main(["recipes", "validate", name, "--set", "name=sdn.mine"]) == 2
    assert "identity_rotation.TAG" in capsys.readouterr().err
    assert main(["recipes", "validate"]) == 2
    assert main(["recipes", "validate", str(tmp_path / "none.yaml")]) == 2
    assert "facezoo recipes list" in capsys.readouterr().err
    content = yaml.safe_load((Path(__file__).parents[2] / "recipes" / f"{name}.yaml").read_text())
    (tmp_path / "blur.yaml").write_text(yaml.safe_dump({**content, "method": "gaussian_blur"}))
    with pytest.raises(InputError, match=r"not a method that is trained; those are: .*sdn"):
        validate_recipe(tmp_path / "blur.yaml")
