"""A user's recogniser: what its yaml says reaches the network, and the method's own encoder is found under any name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facezoo.errors import CheckpointError, InputError
from facezoo.evaluate.judges import Judge, own_encoder
from facezoo.recognition import load_recogniser
from facezoo.recognition.onnx_judge import read_preprocessing

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def save_flat(path, size: int, layout: str = "nchw", outputs: tuple[str, ...] = ("seen",)) -> None:
    """A network that gives back its whole input; a second output is twice that."""
    from onnx import TensorProto, helper, numpy_helper

    shape = ["N", 3, size, size] if layout == "nchw" else ["N", size, size, 3]
    nodes = [helper.make_node("Flatten", ["x"], [outputs[0]])]
    two = numpy_helper.from_array(np.array([2.0], dtype=np.float32), "two")
    if len(outputs) == 2:
        nodes.append(helper.make_node("Mul", [outputs[0], "two"], [outputs[1]]))
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3 * size * size]) for name in outputs],
        [two],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


def test_the_yaml_reaches_the_network(tmp_path):
    save_flat(tmp_path / "my.onnx", 16, "nhwc", ("seen", "double"))
    (tmp_path / "my.yaml").write_text(
        "name: mine\nmetric: euclidean\nchannels: bgr\nlayout: nhwc\nmean: [10, 20, 30]\nstd: 2\nwindow: crop\n"
        "output: double\nthreshold: 0.7\nlicence: MIT\n"
    )
    judge = load_recogniser(tmp_path / "my.onnx")
    assert (judge.name, judge.metric, judge.licence, judge.dim, judge.published) == (
        "mine", "euclidean", "MIT", 768, (0.7,),
    )  # fmt: skip
    faces = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = ((faces + 1) * 127.5).permute(0, 2, 3, 1).flip(3)
    wanted = 2 * (pixels - torch.tensor([10.0, 20.0, 30.0])) / 2
    assert torch.allclose(judge(faces), wanted.flatten(1), atol=1e-3)
    ready = Judge(judge, (0.2,), "cpu", 4, 0)
    ready.set_thresholds(np.random.default_rng(0).normal(size=(9, 768)), np.arange(9))
    assert ready.thresholds["published_0.7"] == -0.7


def test_without_a_yaml_it_is_arcface_like(tmp_path):
    save_flat(tmp_path / "plain.onnx", 112)
    judge = load_recogniser(tmp_path / "plain.onnx")
    faces = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = torch.nn.functional.normalize(load_recogniser("sface").window(faces).flatten(1), dim=1)
    assert torch.allclose(judge(faces), wanted, atol=1e-5)
    # Twice the size: every second pixel of the window is the same place of the face.
    save_flat(tmp_path / "big.onnx", 224)
    with pytest.raises(CheckpointError, match=r"big\.yaml beside it"):
        load_recogniser(tmp_path / "big.onnx")
    (tmp_path / "big.yaml").write_text("window: arcface")
    window = load_recogniser(tmp_path / "big.onnx").window
    assert window.start_x + 2 * window.step * 56 == pytest.approx(64)
    assert window.start_y + 2 * window.step * 72 == pytest.approx(76)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: rgb", "unknown field colour; there are name, metric"),
        ("metric: manhattan", "metric: 'manhattan' is none of cosine, euclidean"),
        ("mean: [1, 2]", "mean: one number or three"),
        ("std: 0", "std: must be above 0"),
        ("std: wide", "std: 'wide' is no number"),
        ("threshold: yes", "threshold: True is no number"),
        ("- a", "unknown field list"),
        ("a: [", "cannot be read as yaml"),
    ],
)
def test_a_wrong_yaml_is_one_line_that_names_the_field(tmp_path, text, message):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_preprocessing(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_wrong_layout_and_output_are_told(tmp_path):
    save_flat(tmp_path / "my.onnx", 16)
    (tmp_path / "my.yaml").write_text("layout: nhwc")
    with pytest.raises(CheckpointError, match="set layout"):
        load_recogniser(tmp_path / "my.onnx")
    (tmp_path / "my.yaml").write_text("output: other")
    with pytest.raises(CheckpointError, match="it has seen"):
        load_recogniser(tmp_path / "my.onnx")


def test_the_methods_own_encoder_is_found_under_another_name(shared_folder, repository, tmp_path):
    from facezoo.data.packed import PackedFaces

    path = repository / "packed" / "evaluation128.safetensors"
    twin = shared_folder / "weights" / "foamliu_MobileFaceNet.onnx"
    if not path.is_file() or not twin.is_file():
        pytest.skip("needs the packed evaluation set and foamliu's network")
    # foamliu's habits: RGB / 255, ImageNet's mean and deviation.
    (tmp_path / "innocent.onnx").symlink_to(twin)
    (tmp_path / "innocent.yaml").write_text("mean: [123.675, 116.28, 103.53]\nstd: [58.395, 57.12, 57.375]\n")
    judge = load_recogniser(tmp_path / "innocent.onnx")
    pictures = PackedFaces(path).batch(list(range(16)))
    own = str(shared_folder / "weights" / "foamliu_mobilefacenet.pt")
    assert "own identity encoder" in str(own_encoder(judge, ["sface", own], pictures))
    assert own_encoder(judge, ["sface", "no such recogniser"], pictures) is None
    assert own_encoder(load_recogniser("sface"), ["sface"], pictures) is not None
