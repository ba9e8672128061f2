"""The table of methods: torch-free, strict, and in agreement with the classes."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from facezoo import registry
from facezoo.errors import FacezooError, InputError, UnknownNameError
from facezoo.methods.options import Options
from facezoo.registry import MethodInfo

CLASSICS = {
    "black_box",
    "eye_bar",
    "gaussian_blur",
    "ksame_eigen",
    "ksame_pixel",
    "low_resolution",
    "pixel_noise",
    "pixelation",
}


@pytest.fixture
def table(monkeypatch):
    """Changes to the table end with the test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


def info(name: str = "mine", **changes) -> MethodInfo:
    values = {"summary": "a test", "entry": "facezoo.methods.classics.cover:BlackBox", **changes}
    return MethodInfo(name=name, **values)


def test_listing_methods_and_their_options_imports_no_torch():
    code = (
        "import sys; from facezoo import registry\n"
        "names = [i.name for i in registry.list_methods()]\n"
        "docs = [registry.load_options_class(i.name).documented() for i in registry.list_methods()]\n"
        "heavy = {'torch', 'cv2', 'numpy', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(','.join(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip().split(",")) >= CLASSICS


def test_list_is_sorted_and_complete():
    names = [entry.name for entry in registry.list_methods()]
    assert names == sorted(names)
    assert set(names) >= CLASSICS


@pytest.mark.parametrize("entry", registry.list_methods(), ids=lambda entry: entry.name)
def test_every_entry_leads_to_a_class_that_agrees_with_the_table(entry):
    if importlib.util.find_spec(entry.entry.partition(":")[0]) is None:
        pytest.skip("this method is not in this build")
    method_class = registry.load_class(entry.name)
    assert method_class.name == entry.name
    assert method_class.__doc__
    if entry.options:
        module, _, options_name = entry.options.partition(":")
        options_class = getattr(importlib.import_module(module), options_name)
        assert method_class.options_class is options_class
        assert options_class.method == entry.name
    if entry.training:
        # Read, not imported: training needs lightning, which is optional and slow to import.
        module, _, training_name = entry.training.partition(":")
        source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
        assert f"class {training_name}(" in source


@pytest.mark.parametrize("name", sorted(CLASSICS))
def test_every_option_is_documented(name):
    options = registry.load_options_class(name)
    for option_name, note in options.documented().items():
        assert note.doc, option_name
        assert note.source or note.kind == "object", option_name
        if note.kind in ("number", "integer"):
            assert note.unit, option_name
            assert note.minimum is not None, option_name
    assert options(), "the defaults are valid"


def test_unknown_method_names_the_nearest_and_all():
    with pytest.raises(UnknownNameError, match="did you mean gaussian_blur") as caught:
        registry.create("gausian_blur")
    assert all(name in caught.value.message for name in CLASSICS)
    assert caught.value.exit_code == 2


def test_unknown_option_lists_the_options():
    with pytest.raises(UnknownNameError, match=r"no option 'radius'; its options: sigma"):
        registry.create("gaussian_blur", radius=3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian_blur", {"sigma": -1}, "sigma must be a number from 0.1 to 256, not -1"),
        ("gaussian_blur", {"sigma": float("nan")}, "sigma must be a number"),
        ("gaussian_blur", {"sigma": "16"}, "sigma must be a number"),
        ("gaussian_blur", {"sigma": True}, "sigma must be a number"),
        ("pixelation", {"block": 0}, "block must be a number from 1 to 128"),
        ("low_resolution", {"cells": 7.5}, "cells must be an integer"),
        ("low_resolution", {"cells": 0}, "cells must be an integer from 1 to 64"),
        ("pixel_noise", {"sigma": -0.5}, "sigma must be a number from 0"),
        ("black_box", {"color": (0, 0)}, "color must be three integers"),
        ("black_box", {"color": (0, 0, 256)}, "color must be three integers"),
        ("black_box", {"color": "red"}, "color must be three integers"),
        ("ksame_pixel", {"k": 1}, "k must be an integer of at least 2"),
        ("ksame_pixel", {"mode": "both"}, "mode must be one of closed, open"),
        ("ksame_eigen", {"components": 0}, "components must be an integer"),
        ("ksame_pixel", {}, "needs a gallery"),
    ],
)
def test_bad_options_are_refused_in_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        registry.create(name, **options)
    assert caught.value.message.startswith(name)
    assert "\n" not in caught.value.message


def test_options_are_brought_to_their_type_and_frozen():
    options = registry.load_options_class("black_box").from_mapping({"color": [1, 2, 3]})
    assert options.color == (1, 2, 3)
    assert options.to_record() == {"color": [1, 2, 3]}
    sigma = registry.load_options_class("gaussian_blur").from_mapping({"sigma": 12}).sigma
    assert isinstance(sigma, float)
    with pytest.raises(AttributeError):
        options.color = (0, 0, 0)


def test_options_read_the_command_lines_texts():
    blur = registry.load_options_class("gaussian_blur")
    assert blur.from_strings({"sigma": "12.5"}).sigma == 12.5
    assert registry.load_options_class("black_box").from_strings({"color": "1,2,3"}).color == (1, 2, 3)
    assert registry.load_options_class("ksame_pixel").from_strings({"k": "5", "gallery": "a.st"}).gallery == "a.st"
    with pytest.raises(InputError, match="sigma must be a number, not 'strong'"):
        blur.from_strings({"sigma": "strong"})
    with pytest.raises(UnknownNameError):
        blur.from_strings({"kernel": "7"})


def test_a_path_never_enters_a_record():
    options = registry.load_options_class("ksame_pixel").from_mapping({"gallery": "/home/somebody/faces.safetensors"})
    assert "gallery" not in options.to_record()


def test_learned_method_points_to_its_checkpoint(table):
    registry.add_method(info("deep", learned=True))
    with pytest.raises(InputError, match=r"facezoo.from_pretrained\('deep.<tag>'\)"):
        registry.create("deep")


def test_duplicate_is_an_error(table):
    registry.add_method(info())
    with pytest.raises(InputError, match="registered already"):
        registry.add_method(info())
    with pytest.raises(InputError, match="registered already"):
        registry.add_method(info("gaussian_blur"))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Upper"},
        {"name": "a.b"},
        {"name": ""},
        {"summary": " "},
        {"entry": "no_colon"},
        {"entry": "a:b:c"},
        {"entry": ""},
        {"options": "nonsense"},
        {"requires_key": True},
        {"training": "a.b:C"},
        {"status": "done"},
    ],
)
def test_malformed_entry_is_refused(changes):
    with pytest.raises(InputError):
        info(**changes)


def test_third_party_method_by_decorator(table):
    from facezoo.methods.base import Method

    @registry.register_method("negative", summary="inverted colours, a test", source="here")
    class Negative(Method):
        """Inverted colours."""

        name = "negative"

        def anonymize(self, faces, context):
            return -faces

    assert registry.method_info("negative").status == "experimental"
    assert isinstance(registry.create("negative"), Negative)
    with pytest.raises(UnknownNameError, match="its options: none"):
        registry.create("negative", strength=1)
    registry.unregister_method("negative")
    with pytest.raises(UnknownNameError):
        registry.create("negative")


def test_decorated_class_brings_its_own_options(table):
    from facezoo.methods.classics.config import GaussianBlurOptions
    from facezoo.methods.classics.smooth import GaussianBlur

    @registry.register_method("my_blur", summary="a test")
    class MyBlur(GaussianBlur):
        """Blur under another name."""

        name = "my_blur"

    assert registry.load_options_class("my_blur") is GaussianBlurOptions
    assert registry.create("my_blur", sigma=3).options.sigma == 3


def test_class_that_contradicts_its_entry_is_refused(table):
    from facezoo.methods.base import Method

    class Mismatch(Method):
        """Says another name."""

        name = "other"

        def anonymize(self, faces, context):
            return faces

    with pytest.raises(FacezooError, match="make them agree"):
        registry.register_method("mismatch", summary="a test")(Mismatch)
    assert "mismatch" not in registry._METHODS

    registry.add_method(info("reversible_box", reversible=True))
    with pytest.raises(FacezooError, match="make them agree"):
        registry.load_class("reversible_box")


@pytest.mark.parametrize(
    ("entry", "message"),
    [("facezoo.no_such:Thing", "cannot import"), ("facezoo.errors:Thing", "has no Thing")],
)
def test_broken_entry_says_what_is_wrong(table, entry, message):
    registry.add_method(info("broken", entry=entry))
    with pytest.raises(FacezooError, match=message):
        registry.create("broken")


def test_plugins_join_and_a_broken_one_is_left_out(table, monkeypatch):
    class Point:
        def __init__(self, name, load):
            self.name, self.value, self.load = name, f"package:{name}", load

    def broken():
        raise RuntimeError("no such library")

    points = [Point("good", lambda: info("from_plugin")), Point("bad", broken), Point("odd", lambda: 3)]
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    with pytest.warns(UserWarning, match="left out") as warned:
        names = [entry.name for entry in registry.list_methods()]
    assert "from_plugin" in names
    assert set(names) >= CLASSICS
    assert len(warned) == 2


def test_base_options_take_nothing():
    assert Options().to_record() == {}
    with pytest.raises(UnknownNameError, match="its options: none"):
        Options().updated({"sigma": 1})
