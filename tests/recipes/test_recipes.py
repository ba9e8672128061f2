"""Every recipe that ships: its keys are known, it trains in both phases, stops, goes on and exports a working model.

The recipes' own code runs; only what a recipe costs is made small: widths, batches, and, where the precision is
bfloat16 (which a CPU without the instructions emulates slowly), a few convolutions in the recogniser's place. The slow
test takes one step of each phase of the paper-sized recipe as it is.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

import facezoo
from facezoo.core.recipe import Recipe, load_recipe
from facezoo.core.run import train, training_class
from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError
from facezoo.generate import load_generator
from facezoo.keys import Key
from facezoo.methods.face_painter import training as face_painter_training
from facezoo.methods.identity_rotation import training as identity_rotation_training
from facezoo.methods.ifadit import training as ifadit_training
from facezoo.nets.bisenet import BiSeNet
from facezoo.nets.landmarks68 import SlimLandmarks
from facezoo.nets.lpips import LPIPS
from facezoo.recognition.iresnet import DEPTHS, IResNet
from facezoo.registry import method_info
from tests.core.toy import make_set
from tests.labelled import FewConvolutions as AnySize
from tests.painted import packed, stub_features

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

REPOSITORY = Path(__file__).parents[2]
ELSEWHERE = ("sdn", "mfm")  # tests/recipes/test_attributed_recipes.py
RECIPES = sorted(p for p in (REPOSITORY / "recipes").rglob("*.yaml") if p.parent.name not in ELSEWHERE)
NAMES = [path.relative_to(REPOSITORY / "recipes").with_suffix("").as_posix() for path in RECIPES]
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=NAMES)
# Other rooms train their recipes in tests of their own: what is cheap and what comes out differs.
of_rotation = pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if path.parent.name == "identity_rotation"],
    ids=[name for name in NAMES if name.startswith("identity_rotation/")],
)
PAPER = REPOSITORY / "recipes" / "identity_rotation" / "celebahq256_paper.yaml"
MESH256 = REPOSITORY / "recipes" / "face_painter" / "mesh256_gpu.yaml"
STYLEGAN2_PAPER = REPOSITORY / "recipes" / "stylegan2" / "ffhq256_paper.yaml"
IFADIT_PAPER = REPOSITORY / "recipes" / "ifadit" / "celebahq256_paper.yaml"
PHASES = {
    "identity_rotation": {"disentangle", "conceal"},
    "ifadit": {"disentangle", "transform"},
    "stylegan2": {"train"},
}
"""Phases of each method's training; growing sizes of stylegan2 come first, and one recipe of ifadit has one phase."""


@pytest.fixture(scope="module")
def arcface(tmp_path_factory) -> Path:
    """A user's own recogniser file: insightface's names, 512 numbers, weights that know nobody."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "arcface.pt"
    torch.save({name: value.half() for name, value in IResNet(DEPTHS["iresnet18"]).state_dict().items()}, path)
    return path


class FewConvolutions(nn.Module):
    """In the place of a recogniser: differentiable, and done in a moment in any precision."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(dim))
        self.body(torch.zeros(1, 3, 128, 128))
        self.requires_grad_(False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.body(faces), dim=-1)


def inputs(recipe: Recipe, folder: Path, arcface: Path) -> list[str]:
    """A packed set and, where the recipe names a file of weights, such a file; as overrides of the recipe."""
    overrides = []
    embedded = 0
    if recipe.method == "stylegan2":
        return [f"data={make_set(folder / 'set.safetensors', count=4, size=16)}"]  # resized as it is read
    if Path(str(recipe.config["recogniser"])).suffix:
        overrides.append(f"config.recogniser={arcface}")
    else:
        embedded = recipe.config["identity_dim"]
    data = make_set(folder / "set.safetensors", count=4, size=recipe.config["size"], dim=embedded)
    if recipe.method == "ifadit":
        overrides += ["config.generator=untrained", *loss_networks(folder)]
    return [*overrides, f"data={data}"]


def loss_networks(folder: Path) -> list[str]:
    """Files in the layouts of ifadit's frozen networks, with weights that know nothing; as overrides."""
    torch.manual_seed(0)
    overrides = []
    for name, network in (("landmarks", SlimLandmarks()), ("lpips", LPIPS()), ("parser", BiSeNet())):
        torch.save(network.state_dict(), folder / f"{name}.pth")
        overrides.append(f"config.{name}={folder / name}.pth")
    return overrides


def cheap(recipe: Recipe) -> list[str]:
    """Overrides that keep a recipe's structure (levels, sizes, losses, precision) and take its cost away."""
    config = recipe.config
    settings = [
        "train.batch_size=2",
        "train.compile=false",  # needs a C++ compiler and a minute
        "train.loader_workers=0",
        "train.log_every_batches=1",
        "train.tick_batches=3",
    ]
    if recipe.method == "stylegan2":
        growing = len(config.get("growing", []))
        side = 16 << growing  # more levels are more of the same; the slow test has those of the paper
        small = {
            "resolution": side,
            "growing": [16 << level for level in range(growing)],
            "channel_base": 4 * side,
            "channel_max": 8,
            "growing_batches": [1] * growing,
            "training_batches": 4 - growing,
            # Penalties and augmentation in these few batches too.
            "r1_every": 2,
            "path_every": 2,
            "ada_every": 1,
            "ada_pictures": 10,
        }
        return [*(f"config.{name}={json.dumps(value)}" for name, value in small.items()), *settings]
    if recipe.method == "ifadit":
        small = {
            "z_dim": 16,
            "w_dim": 16,
            "mapping_layers": 2,
            "channel_base": 4 * config["generator_resolution"],
            "channel_max": 8,
            "encoder_widths": [4, 8, 8, 8],
            "encoder_blocks": [1, 1, 1, 1],
            "head_width": 8,
            "mapper_hidden": 16,
            "flow_hidden": 16,
            "compensation_hidden": 16,
            "key_samples": 100,
            "disentangle_batches": 2,
            "transform_batches": 2,
            "changed_weights": [*config["changed_weights"][:3], 0.0],  # the parser is asked for recovered faces enough
        }
        return [*(f"config.{name}={json.dumps(value)}" for name, value in small.items()), *settings]
    # Coarse levels stay wide enough for normalisation groups of more than one number at 1x1 pixels.
    widths = {
        name: [max(16 if level < 3 else 4, w // 32) for level, w in enumerate(config[name])]
        for name in config
        if name.endswith("_widths")
    }
    small = {"discriminator_width": 4, "conceal_width": 8, "disentangle_batches": 2, "conceal_batches": 2}
    # The second batch of phase one has every loss: the discriminator has joined and identities are swapped.
    small |= {"adversarial_start": 1, "swap_every": 1}
    return [
        *(f"config.{name}={json.dumps(value)}" for name, value in (widths | small).items()),
        *settings,
    ]


def test_there_are_recipes():
    assert PAPER in RECIPES
    assert len(RECIPES) >= 3


@every_recipe
def test_keys_names_and_room(path: Path, tmp_path: Path):
    recipe = load_recipe(path)
    info = method_info(recipe.method)
    assert path.parent.name == recipe.method == recipe.name.partition(".")[0] == info.name
    assert recipe.summary
    assert recipe.data
    assert all(not Path(entry).is_absolute() for entry in recipe.data)
    # The method's own configuration is as strict as the recipe: one wrong letter is an error that names the key.
    with torch.device("meta"), pytest.raises(InputError, match="unknown key 'lambda_idd'"):
        training_class(recipe.method)({**recipe.config, "lambda_idd": 1.0})
    text = path.read_text()
    for other in (text + "\nbatch_size: 3\n", text.replace("train:", "train:\n  batchsize: 3")):
        (tmp_path / "changed.yaml").write_text(other)
        with pytest.raises(InputError, match=r"unknown key 'batch_?size'"):
            load_recipe(tmp_path / "changed.yaml")


@of_rotation
def test_trains_stops_goes_on_and_exports(path: Path, tmp_path: Path, arcface: Path, monkeypatch):
    recipe = load_recipe(path)
    overrides = [*inputs(recipe, tmp_path, arcface), *cheap(recipe)]
    own_weights = Path(str(recipe.config.get("recogniser", ""))).suffix != ""
    if own_weights:
        overrides.append("train.precision=32-true")  # here the user's own recogniser is what matters
    elif recipe.method == "ifadit" or (recipe.train.precision == "bf16-mixed" and "recogniser" in recipe.config):
        stub = FewConvolutions(recipe.config["identity_dim"])
        for module in (identity_rotation_training, ifadit_training):
            monkeypatch.setattr(module, "load_recogniser", lambda name: stub)
    output = tmp_path / "run"
    first = train(path, output=output, overrides=overrides, accelerator="cpu", max_minutes=0)
    assert (first.batches_seen, first.finished, first.stopped_by) == (1, False, "the time limit")
    assert (first.checkpoint / "manifest.json").is_file(), "a stopped run has a checkpoint to look at too"
    second = train(path, output=output, overrides=overrides, accelerator="cpu")
    assert (second.batches_seen, second.finished, second.stopped_by) == (4, True, "")

    with (output / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["batch"]) for row in rows] == [1, 2, 3, 4]
    values = [float(value) for row in rows for value in row.values() if value]
    assert np.isfinite(values).all()
    growing = {f"grow{16 << level}" for level in range(len(recipe.config.get("growing", [])))}
    phases = {"together"} if recipe.config.get("single_phase") else PHASES[recipe.method] | growing
    assert {name.partition("/")[0] for name in rows[0] if "/" in name} == phases
    for name in ("curves.png", *(f"sheets/batch_{batch:07d}.png" for batch in (1, 4))):
        with Image.open(output / name) as picture:
            assert picture.convert("L").getextrema()[0] < 200, f"{name} is empty"

    manifest = json.loads((second.checkpoint / "manifest.json").read_text())
    assert (manifest["name"], manifest["method"]) == (recipe.name, recipe.method)
    assert manifest["training"]["batches"] == 4
    if method_info(recipe.method).kind == "generator":
        people, _ = load_generator(str(second.checkpoint))
        person = people.person(1, 0.7)
        assert person.shape == (3, people.size, people.size)
        assert person.std() > 0.01
        return
    model = facezoo.from_pretrained(str(second.checkpoint))
    size = recipe.config["size"]
    faces = torch.from_numpy(np.array(PackedFaces(tmp_path / "set.safetensors").images[:2])).permute(0, 3, 1, 2)
    faces = faces.float() / 127.5 - 1
    hidden = model.anonymize_faces(faces, Key.from_bytes(bytes(range(32))))
    assert hidden.shape == (2, 3, size, size)
    assert torch.isfinite(hidden).all()
    assert (hidden - faces).abs().mean() > 0.01


@pytest.mark.slow
def test_paper_size_takes_a_step_of_each_phase(tmp_path: Path, arcface: Path):
    recipe = load_recipe(PAPER)
    one_each = ["config.disentangle_batches=1", "config.conceal_batches=1"]
    savings = ["train.batch_size=1", "train.compile=false", "train.loader_workers=0", "train.log_every_batches=1"]
    result = train(
        PAPER,
        output=tmp_path / "run",
        overrides=[*inputs(recipe, tmp_path, arcface), *one_each, *savings],
        accelerator="cpu",
    )
    assert result.finished
    with (tmp_path / "run" / "log.csv").open() as stream:
        first, _ = csv.DictReader(stream)
    assert float(first["disentangle/attr"]) > 0
    assert -1 <= float(first["disentangle/cos_target"]) < 1
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert manifest["config"]["generator_widths"] == recipe.config["generator_widths"]
    assert dataclasses.asdict(recipe)["config"]["size"] == manifest["crop_size"] == 256


def painter_inputs(folder: Path, size: int, monkeypatch) -> list[str]:
    """Invented faces on made-up meshes, and stubs of the frozen networks; as overrides."""
    monkeypatch.setattr(face_painter_training, "load_features", lambda name: stub_features())
    monkeypatch.setattr(face_painter_training, "load_recogniser", lambda name: AnySize(128))
    few = {"expressions": 4, "shape_traits": 4, "texture_traits": 4, "varying": 2, "details": 8, "personal_details": 4}
    data = packed(folder / "set.safetensors", size=size, dim=128)
    return [f"data={data}", *(f"config.{name}={value}" for name, value in few.items()), "config.refine_batches=2"]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "recipes" / "face_painter").glob("*128*.yaml")), ids=lambda p: p.stem
)
def test_face_painter_trains_stops_goes_on_and_exports(path: Path, tmp_path: Path, monkeypatch):
    """Sizes of frame and picture and every loss are the recipe's; directions, widths and batches are few."""
    small = ["config.widths=[8, 8, 8, 8]", "config.pixel_width=4", "config.head_width=4", "config.frame_size=32"]
    settings = ["train.batch_size=2", "train.loader_workers=0", "train.log_every_batches=1", "config.identity_every=1"]
    overrides = [*painter_inputs(tmp_path, 128, monkeypatch), *small, *settings]
    output = tmp_path / "run"
    first = train(path, output=output, overrides=overrides, accelerator="cpu", max_minutes=0)
    assert (first.batches_seen, first.finished) == (1, False)
    second = train(path, output=output, overrides=overrides, accelerator="cpu")
    assert (second.batches_seen, second.finished) == (2, True)
    with (output / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert np.isfinite([float(value) for row in rows for value in row.values() if value]).all()
    assert {name.partition("/")[0] for name in rows[0] if "/" in name} == {"refine"}
    people, _ = load_generator(str(second.checkpoint))
    assert people.person(1, 0.7).shape == (3, 128, 128)


@pytest.mark.slow
def test_face_painter_at_256_takes_a_step(tmp_path: Path, monkeypatch):
    """Frame, widths and every loss as in the recipe, two faces a batch."""
    settings = ["train.batch_size=2", "train.loader_workers=0", "train.log_every_batches=1", "config.identity_every=1"]
    overrides = [*painter_inputs(tmp_path, 256, monkeypatch), *settings, "config.refine_batches=1"]
    result = train(MESH256, output=tmp_path / "run", overrides=overrides, accelerator="cpu")
    assert result.finished
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert manifest["crop_size"] == manifest["config"]["frame_size"] == 256
    assert manifest["config"]["widths"] == load_recipe(MESH256).config["widths"]
    with (tmp_path / "run" / "log.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert -1 <= float(row["refine/cos_wanted"]) <= 1
    assert float(row["refine/l1"]) > 0


@pytest.mark.slow
def test_ifadit_at_paper_size_takes_a_step_of_each_phase(tmp_path: Path, arcface: Path):
    """Everything as in the recipe (generator, encoder, flow, every loss), one face a batch."""
    recipe = load_recipe(IFADIT_PAPER)
    few = ["config.disentangle_batches=1", "config.transform_batches=1", "train.batch_size=1"]
    settings = ["train.loader_workers=0", "train.log_every_batches=1"]
    overrides = [*inputs(recipe, tmp_path, arcface), *few, *settings]
    result = train(IFADIT_PAPER, output=tmp_path / "run", overrides=overrides, accelerator="cpu")
    assert result.finished
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert manifest["config"]["encoder_widths"] == recipe.config["encoder_widths"]
    assert manifest["crop_size"] == manifest["config"]["generator_resolution"] == 256
    with (tmp_path / "run" / "log.csv").open() as stream:
        first, second = csv.DictReader(stream)
    assert float(first["disentangle/landmarks"]) > 0
    assert float(second["transform/image"]) > 0


@pytest.mark.slow
def test_stylegan2_at_paper_size_takes_a_step_with_both_penalties(tmp_path: Path, arcface: Path):
    """Channels and latents as in the recipe, one picture a batch (two minutes)."""
    recipe = load_recipe(STYLEGAN2_PAPER)
    few = ["config.training_batches=1", "train.batch_size=1", "train.loader_workers=0", "train.log_every_batches=1"]
    overrides = [*inputs(recipe, tmp_path, arcface), *few]
    result = train(STYLEGAN2_PAPER, output=tmp_path / "run", overrides=overrides, accelerator="cpu")
    assert result.finished
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert manifest["crop_size"] == manifest["config"]["resolution"] == 256
    assert manifest["config"]["channel_base"] == recipe.config["channel_base"]
    with (tmp_path / "run" / "log.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["train/r1"]) > 0
    assert float(row["train/path"]) > 0
