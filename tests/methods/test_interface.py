"""What every method promises, checked over the whole registry.

A method that is added to the registry is checked here without a line of its own. Where a method cannot be made from
its name alone (a gallery, a checkpoint), `CASES` says how; a plug-in's own tests may subclass `MethodTester`.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from facezoo import registry
from facezoo.data.packed import write_packed
from facezoo.errors import FacezooError, InputError, KeyMaterialError, UnknownNameError
from facezoo.faces import align
from facezoo.keys import Key
from facezoo.methods.base import FaceContext, LearnedMethod, Method
from facezoo.methods.ksame.gallery import Gallery

KEY = Key.from_bytes(bytes(range(32)))
OTHER_KEY = Key.from_bytes(bytes(range(1, 33)))


def invented_faces(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    """(B, 3, size, size) in [-1, 1]: smooth shapes with grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 5, 5, generator=generator)
    faces = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return ((faces + 0.05 * torch.rand(faces.shape, generator=generator)).clamp(0, 1) * 2 - 1).contiguous()


def gallery() -> Gallery:
    faces = invented_faces(12, 24, seed=7)
    pixels = ((faces + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    points = align.template(24)[None] + np.random.default_rng(1).uniform(-0.5, 0.5, (12, 5, 2))
    return Gallery(pixels, points=points, labels={"expression": np.repeat([0, 1], 6)})


_FOLDER = tempfile.TemporaryDirectory()


def in_open_mode(name: str) -> Callable[[], Method]:
    return lambda: registry.create(name, gallery=gallery(), k=3, mode="open")


KSAME = ("ksame_pixel", "ksame_eigen", "ksame_select", "ksame_m", "ksame_furthest")
CASES: dict[str, Callable[[], Method]] = {name: in_open_mode(name) for name in KSAME}
"""How to make the methods that need more than their name."""

CASES |= {
    name: functools.partial(registry.create, name, randomness="seeded") for name in ("dp_pix", "dp_blur", "dp_svd")
}
SEEDED = ("identity_dp", "dp_kanonymity")
"""Learned methods whose noise nobody can repeat unless they are told that this is a test."""


class MethodTester:
    """The promises of `facezoo.methods.base.Method`; a subclass or fixture gives the method."""

    any_sizes = (16, 33, 64)

    def make(self, method: Method, batch: int = 3, **context: object) -> tuple[torch.Tensor, FaceContext]:
        """Faces of a size that the method takes, and a context with a key."""
        size = method.crop_size or 48
        return invented_faces(batch, size), FaceContext(**{"key": KEY, "points": None, **context})

    def test_smoke(self, method):
        for size in (method.crop_size,) if method.crop_size else self.any_sizes:
            faces = invented_faces(2, size)
            result = method.anonymize(faces, FaceContext(key=KEY))
            assert result.shape == faces.shape
            assert result.dtype == faces.dtype
            assert result.device == faces.device
            assert torch.isfinite(result).all()
            assert result.min() >= -1
            assert result.max() <= 1
            assert not result.requires_grad
            assert (result - faces).abs().mean() > 0.01, "the face was changed"

    def test_half_precision_is_kept(self, method):
        faces, context = self.make(method)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            result = method.anonymize(faces.to(dtype), context)
            assert result.dtype == dtype
            assert result.min() >= -1
            assert result.max() <= 1

    def test_same_key_and_seed_same_result(self, method):
        faces, context = self.make(method, seed=3)
        assert torch.equal(method.anonymize(faces, context), method.anonymize(faces, context))

    def test_key_matters_exactly_where_it_is_said_to(self, method):
        faces, context = self.make(method)
        other = method.anonymize(faces, FaceContext(key=OTHER_KEY))
        assert torch.equal(method.anonymize(faces, context), other) is not method.uses_key

    def test_missing_key(self, method):
        faces, _ = self.make(method)
        if method.requires_key:
            with pytest.raises(KeyMaterialError):
                method.anonymize(faces, FaceContext())
        else:
            assert method.anonymize(faces, FaceContext()).shape == faces.shape

    def test_a_face_does_not_depend_on_its_neighbours(self, method):
        faces, context = self.make(method)
        together = method.anonymize(faces, context)
        for position in range(len(faces)):
            alone = method.anonymize(faces[position : position + 1], context)
            # Learned methods may sum in another order in another batch: allowed below a hundredth of a level.
            assert torch.allclose(alone[0], together[position], atol=1e-4 if method.learned else 1e-6)
        turned = method.anonymize(faces.flip(0), context)
        assert torch.allclose(turned.flip(0), together, atol=1e-4 if method.learned else 1e-6)

    def test_input_and_options_are_not_changed(self, method):
        faces, _ = self.make(method)
        points = np.random.default_rng(0).uniform(0.3, 0.7, (len(faces), 5, 2)) * faces.shape[-1]
        context = FaceContext(points=points, key=KEY)
        before_faces, before_points, before_options = faces.clone(), points.copy(), method.options
        result = method.anonymize(faces, context)
        result.fill_(0.5)
        assert torch.equal(faces, before_faces), "changed in place, or handed back as a view"
        assert np.array_equal(points, before_points)
        assert method.options == before_options

    def test_strided_and_grad_inputs(self, method):
        faces, context = self.make(method)
        wanted = method.anonymize(faces, context)
        strided = faces.to(memory_format=torch.channels_last)
        assert torch.allclose(method.anonymize(strided, context), wanted, atol=1e-4 if method.learned else 1e-6)
        assert torch.allclose(method.anonymize(faces.clone().requires_grad_(), context), wanted, atol=1e-6)

    def test_no_faces(self, method):
        faces, context = self.make(method, batch=0)
        assert method.anonymize(faces, context).shape == faces.shape

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda faces: faces[0],
            lambda faces: faces[:, :1],
            lambda faces: faces[..., :-1],
            lambda faces: (faces * 127).to(torch.uint8),
            lambda faces: faces * 127.5 + 127.5,
            lambda faces: faces * float("nan"),
            lambda faces: faces.numpy(),
            lambda faces: faces.permute(0, 2, 3, 1),
        ],
        ids=["unbatched", "grey", "oblong", "bytes", "0..255", "nan", "numpy", "channels-last-shape"],
    )
    def test_bad_faces_are_refused_in_one_line(self, method, spoil):
        faces, context = self.make(method)
        with pytest.raises(InputError) as caught:
            method.anonymize(spoil(faces), context)
        assert method.name in caught.value.message

    def test_unknown_option_of_a_call_is_refused(self, method):
        faces, _ = self.make(method)
        with pytest.raises(UnknownNameError, match="no option 'nonsense'"):
            method.anonymize(faces, FaceContext(key=KEY, options={"nonsense": 1}))

    def test_recover(self, method):
        faces, context = self.make(method)
        if not method.reversible:
            with pytest.raises(InputError, match="nothing to recover") as caught:
                method.recover(faces, context)
            assert all(name in caught.value.message for name in registry.reversible_methods())
            return
        result = method.recover(method.anonymize(faces, context), context)
        assert result.faces.shape == faces.shape
        assert result.faces.abs().max() <= 1
        assert len(result.verified) == len(faces)
        assert all(verdict in (True, False, None) for verdict in result.verified)

    def test_record_is_plain_and_holds_no_secret(self, method):
        import json

        _, context = self.make(method)
        text = json.dumps(method.options_record(context))
        assert 'gallery":' not in text
        assert KEY.bytes("x", 8).hex() not in text


def _made(name: str) -> Method:
    if name in CASES:
        return CASES[name]()
    info = registry.method_info(name)
    if importlib.util.find_spec(info.entry.partition(":")[0]) is None:
        pytest.skip("this method is not in this build")
    if info.learned:
        return _learned(name)
    return registry.create(name)


def _learned(name: str) -> Method:
    """The smallest bundled checkpoint of a learned method."""
    from facezoo.hub.manifest import bundled_models, resolve_model

    models = {model: entry for model, entry in bundled_models().items() if model.partition(".")[0] == name}
    if not models:
        pytest.skip(f"no bundled checkpoint of {name}")
    resolved = resolve_model(min(models, key=lambda model: models[model]["crop_size"]))
    method = registry.load_class(name).from_checkpoint(resolved.folder, dict(resolved.manifest))
    if name in SEEDED:
        method.options = method.options.updated({"randomness": "seeded"})
    if name == "dp_kanonymity":
        method.options = method.options.updated({"reference": str(reference()), "k": 3, "gamma": 1.0})
    return method


@functools.cache
def reference() -> Path:
    """A packed set of people to hide among, for as long as the tests run."""
    path = Path(_FOLDER.name) / "reference.safetensors"
    names = [f"p{row}" for row in range(12)]
    write_packed(path, iter(gallery().images), size=24, identities=names, files=names)
    return path


class TestRegisteredMethods(MethodTester):
    """Every method of the registry keeps the promises."""

    @pytest.fixture(params=[info.name for info in registry.list_methods()])
    def method(self, request):
        return _made(request.param)


def test_context_refuses_a_text_as_key():
    with pytest.raises(KeyMaterialError, match=r"Key\.from_passphrase"):
        FaceContext(key="my passphrase")
    with pytest.raises(InputError, match="seed must be an integer"):
        FaceContext(seed=1.5)


def test_method_refuses_options_of_another():
    blur = registry.load_options_class("gaussian_blur")()
    with pytest.raises(InputError, match="options must be a PixelationOptions"):
        registry.load_class("pixelation")(blur)


def test_learned_methods_cannot_be_half_defined():
    class Half(LearnedMethod):
        """No networks, no way to load them."""

        name = "half"

        def anonymize(self, faces, context):
            return faces

    with pytest.raises(TypeError, match="from_checkpoint"):
        Half()


def test_align_for_recovery_keeps_transforms_by_default():
    transforms = np.zeros((2, 2, 3))
    method = registry.create("black_box")
    assert method.align_for_recovery(lambda t: torch.zeros(1), transforms, FaceContext()) is transforms


def test_every_error_of_this_room_is_one_of_ours():
    for error in (InputError, KeyMaterialError, UnknownNameError):
        assert issubclass(error, FacezooError)
