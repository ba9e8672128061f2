"""A training run as a user starts it: what lies in its folder, how it stops, what it needs, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import facezoo
from facezoo.core import sheets
from facezoo.core.run import train
from facezoo.errors import CheckpointError, InputError
from facezoo.hub.manifest import load_networks, read_manifest, verify_files
from tests.core.toy import make_set
from tests.methods.test_identity_rotation import TINY

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def write_recipe(folder: Path, batches: int = 2) -> Path:
    """The smallest recipe with both phases, as JSON, which is YAML too."""
    data = make_set(folder / "set.safetensors", count=6, size=128, dim=128)
    config = {**TINY, "disentangle_batches": batches, "conceal_batches": batches, "jpeg_share": 0.0, "swap_share": 0.0}
    settings = {"batch_size": 2, "sheet_every_batches": 2, "log_every_batches": 1, "tick_batches": 3}
    recipe = {
        "name": "identity_rotation.small",
        "method": "identity_rotation",
        "summary": "a test",
        "data": [str(data)],
        "train": settings,
        "config": config,
    }
    path = folder / "small.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def command(repository: Path, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    """Starts ``facezoo`` with these arguments in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "facezoo", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# What it needs


def site_packages_of(names: list[str], folder: Path) -> Path:
    """A folder that has only these distributions and what they require: what ``pip install`` of them brings."""
    wanted, done = list(names), set()
    folder.mkdir()
    while wanted:
        name = wanted.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required on another system or Python only
        if distribution.metadata["Name"] in done:
            continue
        done.add(distribution.metadata["Name"])
        wanted += [re.split(r"[ ;<>=!~\\[(]", r)[0] for r in distribution.requires or [] if "extra ==" not in r]
        for entry in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            link = folder / entry
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(entry))).resolve())
    return folder


@pytest.fixture(scope="module")
def few_packages(tmp_path_factory) -> Path:
    folder = site_packages_of(
        ["torch", "lightning", "safetensors", "numpy"], tmp_path_factory.mktemp("few") / "site-packages"
    )
    for absent in ("cv2", "kornia", "PIL", "matplotlib", "huggingface_hub", "cryptography", "onnxruntime", "wandb"):
        assert not (folder / absent).exists(), absent
    return folder


def facezoo_with(few_packages: Path, repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs ``facezoo`` with the interpreter's own library, these packages and the repository, and nothing else."""
    return subprocess.run(
        [sys.executable, "-S", "-m", "facezoo", *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{repository}:{few_packages}", "OMP_NUM_THREADS": "1"},
        cwd=few_packages,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_trains_with_torch_lightning_safetensors_and_numpy_alone(tmp_path, recipe, repository, few_packages):
    done = facezoo_with(few_packages, repository, "train", recipe, "-o", tmp_path / "run", "--accelerator", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 batches, finished" in done.stdout
    # Elsewhere, with everything installed, the checkpoint is whole and the sheet is a picture.
    manifest, _ = read_manifest(tmp_path / "run" / "checkpoint")
    verify_files(tmp_path / "run" / "checkpoint", manifest)
    with Image.open(tmp_path / "run" / "sheets" / "batch_0000004.png") as sheet:
        assert sheet.size == (150 + 8 * 131, 24 + 8 * 131)
        assert sheet.getpixel((149, 24)) == (250, 250, 248)
        assert sheet.crop((150, 24, 278, 152)).convert("L").getextrema() != (250, 250)
    assert (tmp_path / "run" / "log.csv").is_file()
    assert not (tmp_path / "run" / "curves.png").exists(), "lines are drawn by Pillow"


def test_simulated_jpeg_without_kornia_is_told_before_the_first_batch(tmp_path, recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.enhance", None)
    with pytest.raises(InputError, match=r"^simulating JPEG needs kornia: pip install .* config\.jpeg_share=0$"):
        train(recipe, output=tmp_path / "run", accelerator="cpu", overrides=["config.jpeg_share=0.3"])
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_sheets_with_and_without_pillow_show_the_same_pictures(tmp_path: Path, monkeypatch):
    rows = [("first row", torch.rand(2, 3, 16, 16) * 2 - 1), ("second", torch.rand(1, 3, 16, 16) * 2 - 1)]
    sheets.save_sheet(tmp_path / "with.png", rows, "caption")
    monkeypatch.setitem(sys.modules, "PIL", None)
    sheets.save_sheet(tmp_path / "without.png", rows, "caption")
    monkeypatch.undo()
    with Image.open(tmp_path / "with.png") as a, Image.open(tmp_path / "without.png") as b:
        assert a.size == b.size
        assert a.tobytes() != b.tobytes(), "titles"
        right = (150, 24, *a.size)
        assert a.crop(right).tobytes() == b.crop(right).tobytes()


# What it shows and keeps


def test_a_run_from_the_command_line_with_wandb_offline(tmp_path: Path, recipe: Path, repository: Path):
    pytest.importorskip("wandb")
    # Whoever wants to send something, wandb's own service process too, would have to call here.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = command(
            repository,
            *("train", recipe, "-o", tmp_path / "run", "--accelerator", "cpu", "--wandb"),
            WANDB_MODE="offline",
            WANDB_SILENT="true",
            WANDB_BASE_URL=address,
            HTTP_PROXY=address,
            HTTPS_PROXY=address,
            NO_PROXY="",
        )
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err[-3000:]
        with pytest.raises(BlockingIOError):
            server.accept()
    assert f"checkpoint: {tmp_path / 'run' / 'checkpoint'}" in out
    assert "4/4" in err
    assert "batch/s" in err or "s/batch" in err
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (log,) = offline.glob("*.wandb")
    content = log.read_bytes()
    for word in (b"disentangle/l1", b"conceal/psnr", b"pictures_per_second", b"identity_rotation.small"):
        assert word in content, word
    assert not list(offline.rglob("*.png")), "sheets show faces: they go only when that is asked for"
    for file in (path for path in offline.rglob("*") if path.is_file() and path.parent.name != "logs"):
        assert str(tmp_path).encode() not in file.read_bytes(), f"{file.name} tells a path of this machine"
    assert b"manifest_sha256" in content, "the checkpoint that came out"

    with (tmp_path / "run" / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["batch"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["conceal/psnr"] == "", "a phase's columns are empty before it"
    assert float(rows[3]["pictures_per_second"]) > 0
    for name in ("curves.png", "sheets/batch_0000002.png", "sheets/batch_0000004.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert picture.convert("L").getextrema()[0] < 200, f"{name} is empty"


def test_wandb_missing_is_one_line(tmp_path: Path, recipe: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'facezoo\[train\]'"):
        train(recipe, output=tmp_path / "run", accelerator="cpu", wandb=True)


# How it stops


def test_sigterm_from_outside_saves_and_the_same_command_goes_on(tmp_path: Path, repository: Path):
    recipe = write_recipe(tmp_path, batches=400)
    arguments = (
        "train",
        recipe,
        "-o",
        tmp_path / "run",
        "--accelerator",
        "cpu",
        "--set",
        "train.sheet_every_batches=999",
    )
    process = command(repository, *arguments)
    log = tmp_path / "run" / "log.csv"
    deadline = time.monotonic() + 240
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "no batch was done"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    assert "stopped by SIGTERM; the same command goes on" in out
    done = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["facezoo"]["batches_seen"]
    assert 3 <= done < 800
    assert f"{done} batches" in out
    assert read_manifest(tmp_path / "run" / "checkpoint")[0]["name"] == "identity_rotation.small"
    assert not list(tmp_path.rglob("*.part"))

    result = train(recipe, output=tmp_path / "run", accelerator="cpu", max_minutes=0)
    assert result.batches_seen == done + 1


@pytest.mark.slow
def test_a_compiled_run_stops_goes_on_and_exports_the_same_names(recipe: Path, tmp_path: Path, monkeypatch):
    """The networks are compiled in place: averages copy them, checkpoints keep their names. Tracing without codegen."""
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda network: whole(network, backend="aot_eager"))
    parts = [
        train(recipe, output=tmp_path / "run", accelerator="cpu", overrides=["train.compile=true"], max_minutes=limit)
        for limit in (0, None)
    ]
    assert [part.batches_seen for part in parts] == [1, 4]
    plain = train(recipe, output=tmp_path / "plain", accelerator="cpu")
    a, b = (torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"] for run in (parts[1], plain))
    assert list(a) == list(b)
    for name, value in a.items():
        assert torch.allclose(value, b[name], atol=1e-2), name


# What it refuses


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    path = write_recipe(folder, batches=1)
    return path, train(path, output=folder / "run", accelerator="cpu").folder


@pytest.mark.parametrize(
    "harm",
    [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"PK" + b"\0" * 1000],
    ids=["empty", "cut", "other"],
)
def test_a_damaged_checkpoint_is_one_line_and_stays(finished, tmp_path: Path, harm):
    recipe, folder = finished
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "recipe.json").write_bytes((folder / "recipe.json").read_bytes())
    damaged = harm((folder / "last.ckpt").read_bytes())
    (copy / "last.ckpt").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged .* --overwrite to start anew$"):
        train(recipe, output=copy, accelerator="cpu")
    assert (copy / "last.ckpt").read_bytes() == damaged
    assert train(recipe, output=copy, accelerator="cpu", overwrite=True).finished


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"'])
def test_a_damaged_recipe_beside_a_run_is_one_line(finished, tmp_path: Path, text: str):
    recipe, folder = finished
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes())
    (tmp_path / "run" / "recipe.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"recipe\.json is damaged"):
        train(recipe, output=tmp_path / "run", accelerator="cpu")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_size=0"], "batch_size must be at least 1"),
        (["train.log_every_batches=0"], "log_every_batches must be at least 1"),
        (["train.tick_batches=-1"], "tick_batches must be at least 1"),
        (["train.save_every_minutes=0"], "save_every_minutes must be above 0"),
        (["train.ema_decay=1"], "ema_decay must be"),
        (["train.loader_workers=-1"], "must not be negative"),
        (["train.precision=bf8"], "'bf8' is not one of 32-true, bf16-mixed"),
        (["config.size=100"], "config: size 25 cannot be halved"),
        (["config.generator_widths=[8]"], "config: "),
        (["data=absent.safetensors"], r"absent\.safetensors"),
        (["data=[]"], "facezoo prepare"),
        (["config.recogniser=absent.pt"], None),
        (["method=gaussian_blur"], "not a method that is trained"),
        (["method=identity_rotaton"], "identity_rotation"),
    ],
)
def test_wrong_settings_are_one_line(recipe: Path, tmp_path: Path, overrides: list[str], message: str | None):
    with pytest.raises(facezoo.FacezooError, match=message) as caught:
        train(recipe, output=tmp_path / "run", overrides=overrides, accelerator="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "tpu"}, "choose auto, cpu or gpu"),
        ({"accelerator": "cpu", "devices": 0}, "at least 1"),
        ({"accelerator": "cpu", "max_minutes": float("nan")}, "must not be negative"),
        ({"accelerator": "cpu", "max_minutes": -1.0}, "must not be negative"),
    ],
)
def test_wrong_options_are_one_line(recipe: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        train(recipe, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there(recipe: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device here"):
        train(recipe, output=tmp_path / "run", accelerator="gpu")


def test_a_first_attempt_that_failed_does_not_bind_the_folder(recipe: Path, tmp_path: Path):
    with pytest.raises(InputError):
        train(recipe, output=tmp_path / "run", overrides=["data=absent.safetensors", "train.seed=5"], accelerator="cpu")
    assert train(recipe, output=tmp_path / "run", accelerator="cpu", max_minutes=0).batches_seen == 1


# Starting from a part of another checkpoint


def test_a_run_starts_from_the_named_networks_and_says_so(finished, tmp_path: Path):
    """Only phase one runs, so the concealing networks stay what they were taken as; the others stay their own."""
    recipe, folder = finished
    options = {"accelerator": "cpu", "overrides": ["train.seed=9", "config.conceal_batches=0"]}
    names = ("code_encoder", "code_extractor")
    run = train(recipe, output=tmp_path / "run", init_from=folder / "checkpoint", init_networks=names, **options)
    plain = train(recipe, output=tmp_path / "plain", **options)
    before, after, own = (
        load_networks(f, read_manifest(f)[0]) for f in (folder / "checkpoint", run.checkpoint, plain.checkpoint)
    )
    for name in ("code_encoder", "code_extractor", "code_embedder", "revealer"):
        taken = name in names
        for key, value in after[name].items():
            assert torch.equal(value, (before if taken else own)[name][key]), (name, key)
        # An encoder of another seed differs somewhere, or the comparison above would say nothing.
        assert any(not torch.equal(before[name][key], own[name][key]) for key in before[name]), name
    told = read_manifest(run.checkpoint)[0]["training"]["started_from"]
    assert told == {
        "name": "identity_rotation.small",
        "checksum": read_manifest(folder / "checkpoint")[1],
        "networks": sorted(names),
    }
    assert "started_from" not in read_manifest(plain.checkpoint)[0]["training"]
    with pytest.raises(InputError, match=r"decoder: not a network that .* share; choose from"):
        train(recipe, output=tmp_path / "third", init_from=folder / "checkpoint", init_networks=("decoder",), **options)
