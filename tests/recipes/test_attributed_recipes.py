"""Every recipe of SDN and MfM: strict keys; trains both sides, stops, goes on, exports a model that works both ways."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import facezoo
from facezoo.core.recipe import Recipe, load_recipe
from facezoo.core.run import train, training_class
from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError
from facezoo.keys import Key
from facezoo.methods.attributed import method as attributed_method
from facezoo.methods.attributed import training
from tests.labelled import NAMES, PAINTED, FewConvolutions, labelled_set, painter_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted(path for name in ("sdn", "mfm") for path in (REPOSITORY / "recipes" / name).glob("*.yaml"))
KINDS = ("faces64_cpu", "faces128_gpu", "facescrub128_paper")
IDS = [f"{path.parent.name}/{path.stem}" for path in RECIPES]


def cheap(recipe: Recipe) -> list[str]:
    """Overrides that keep a recipe's structure (losses, switches, precision, phases) and take its cost away."""
    config = recipe.config
    small = {
        "size": 64,
        "attributes": list(NAMES),
        "width": 8,
        "extractor_size": 32,
        "extractor_layers": 3,
        "extractor_width": 8,
        "extractor_max_width": 8,
        "identity_classes": 12,
        "discriminator_size": 32,
        "discriminator_layers": 2,
        "discriminator_width": 4,
        "discriminator_max_width": 8,
        "bank_entries": 4,
        "code_width": 8,
        "code_blocks": 1,
    }
    if config.get("norm_groups"):
        small["norm_groups"] = 2
    if config.get("painter_generator_widths"):
        small |= {name: PAINTED[name] for name in PAINTED if name.startswith("painter_")}
    if recipe.method == "sdn":
        small |= {"reveal_width": 8, "identity_blocks": 1, "erasing_blocks": 1, "alternate_batches": ratio(recipe) + 1}
        small |= {"reveal_identity_blocks": 1, "reveal_blocks": 1}
    else:
        small |= {"content_blocks": 1, "decoder_blocks": 1, "modify_batches": ratio(recipe) + 1}
        small |= {"classify_batches": 1} if config.get("extractor") == "learned" else {}
    return [
        *(f"config.{name}={json.dumps(value)}" for name, value in small.items()),
        "train.batch_size=2",
        "train.precision=32-true",
        "train.compile=false",
        "train.loader_workers=0",
        "train.log_every_batches=1",
        "train.tick_batches=4",
    ]


def ratio(recipe: Recipe) -> int:
    return int(recipe.config["discriminator_ratio"])


@pytest.mark.parametrize("method", ["sdn", "mfm"])
def test_there_are_recipes(method: str):
    stems = {path.stem for path in RECIPES if path.parent.name == method}
    assert set(KINDS) <= stems
    assert any("no_information" in stem for stem in stems), "the ablations are recipes"


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("sdn/faces64_cpu_no_dual_inference", {"dual_inference"}),
        ("sdn/faces64_cpu_no_information", {"lambda_realism", "lambda_recovery", "lambda_marginal"}),
        ("sdn/faces64_cpu_ratio10", {"discriminator_ratio", "alternate_batches"}),
        ("mfm/faces64_cpu_no_information", {"lambda_acceptability", "lambda_recovery", "lambda_marginal"}),
        ("mfm/faces64_cpu_fifth", {"discriminator_ratio", "modify_batches"}),
    ],
)
def test_an_ablation_changes_its_switch_and_nothing_else(name: str, switches: set[str]):
    """As many generator batches too, or two things would be compared at once."""
    path = REPOSITORY / "recipes" / f"{name}.yaml"
    base, ablation = load_recipe(path.parent / "faces64_cpu.yaml"), load_recipe(path)
    both = {**base.config, **ablation.config}
    assert {key for key in both if base.config.get(key) != ablation.config.get(key)} == switches
    assert base.train == ablation.train
    assert base.data == ablation.data
    length = "alternate_batches" if base.method == "sdn" else "modify_batches"
    assert base.config[length] / (ratio(base) + 1) == ablation.config[length] / (ratio(ablation) + 1)


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_keys_names_and_room(path: Path):
    recipe = load_recipe(path)
    assert path.parent.name == recipe.method == recipe.name.partition(".")[0]
    assert recipe.summary
    assert all(not Path(entry).is_absolute() for entry in recipe.data)
    with torch.device("meta"), pytest.raises(InputError, match="unknown key 'lambda_enn'"):
        training_class(recipe.method)({**recipe.config, "lambda_enn": 1.0})
    assert path.read_text().startswith("# "), "a recipe says what it costs and how it is run"


@pytest.mark.parametrize(
    "path",
    [path if path.stem in KINDS else pytest.param(path, marks=pytest.mark.slow) for path in RECIPES],
    ids=IDS,
)
def test_trains_stops_goes_on_and_exports(path: Path, tmp_path: Path, monkeypatch):
    for room in (training, attributed_method):
        monkeypatch.setattr(room, "load_recogniser", lambda name: FewConvolutions())
    recipe = load_recipe(path)
    data = labelled_set(tmp_path / "set.safetensors")
    overrides = [*cheap(recipe), f"data={data}"]
    start = painter_checkpoint(tmp_path / "painter") if recipe.config.get("painter_generator_widths") else None
    first = train(path, output=tmp_path / "run", overrides=overrides, accelerator="cpu", max_minutes=0, init_from=start)
    assert (first.batches_seen, first.finished) == (1, False)
    second = train(path, output=tmp_path / "run", overrides=overrides, accelerator="cpu")
    assert second.finished
    with (tmp_path / "run" / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    values = [float(value) for row in rows for value in row.values() if value]
    assert np.isfinite(values).all()
    assert any(name.endswith("/d_value") or name.endswith("/v_value") for name in rows[0])
    assert any(name.endswith("/total") for name in rows[0])
    key = Key.from_bytes(bytes(range(32)))
    model = facezoo.from_pretrained(str(second.checkpoint), attributes="smiling=yes")
    faces = torch.from_numpy(np.array(PackedFaces(data).images[:2])).permute(0, 3, 1, 2).float() / 127.5 - 1
    hidden = model.anonymize_faces(faces, key)
    assert torch.isfinite(hidden).all()
    assert (hidden - faces).abs().mean() > 0.01
    assert model.recover_faces(hidden, key).faces.shape == faces.shape
