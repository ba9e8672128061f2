"""The table of methods: which exist, what each can do, and where its class lives.

Nothing here imports torch, and neither does reading the table: an entry names its class as ``"module:Class"`` and the
module is imported when a method is made. That keeps ``facezoo list`` and ``facezoo --help`` fast.

A method of one's own joins in one of three ways (docs/methods.md shows each):

* ``@register_method("my_method", summary="...")`` over a class, in a module that the program imports;
* ``add_method(MethodInfo(...))`` with the class named by a string, so that nothing heavy is imported;
* an entry point of the group ``facezoo.methods`` in an installed package, which names a ``MethodInfo``: such a method
  is also known to the command line.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from facezoo.errors import FacezooError, InputError, UnknownNameError

if TYPE_CHECKING:
    from facezoo.methods.base import Method, PeopleGenerator
    from facezoo.methods.options import Options

__all__ = [
    "MethodInfo",
    "add_method",
    "create",
    "list_methods",
    "load_class",
    "load_generator_class",
    "load_options_class",
    "method_info",
    "register_method",
    "require_anonymizer",
    "reversible_methods",
    "unknown_name",
    "unregister_method",
]

ENTRY_POINT_GROUP = "facezoo.methods"
"""Installed packages announce their methods under this entry-point group."""

Kind = Literal["anonymizer", "generator"]

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_ENTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")


@dataclass(frozen=True)
class MethodInfo:
    """What is known about a method before its code is imported.

    Attributes:
        name: lower-case letters, digits and underscores; the part of a model's name before the dot.
        summary: one line for ``facezoo list``.
        entry: ``"module:Class"``, a subclass of `facezoo.methods.base.Method`, or of `PeopleGenerator` there.
        options: ``"module:Class"`` of the frozen options dataclass, in a module that imports no torch; "" when the
            method has no options of its own.
        learned: whether it needs a checkpoint.
        reversible: whether ``recover`` can bring the face back.
        uses_key: whether a key changes the result.
        requires_key: whether it refuses to work without a key.
        source: paper, chapter or table that defines it.
        status: "stable", or "experimental" for a method whose figures are not measured yet.
        training: ``"module:Class"`` of the training module (phases, networks, steps) of a learned method; else "".
        kind: "anonymizer" changes faces; "generator" makes people who do not exist (``facezoo generate``) and can
            anonymize nothing.
    """

    name: str
    summary: str
    entry: str
    options: str = ""
    learned: bool = False
    reversible: bool = False
    uses_key: bool = False
    requires_key: bool = False
    source: str = ""
    status: Literal["stable", "experimental"] = "stable"
    training: str = ""
    kind: Kind = "anonymizer"

    def __post_init__(self) -> None:
        """Refuse an entry that could not be used later.

        Raises:
            InputError: a malformed name or entry, an empty summary, or flags that contradict each other.
        """
        if not _NAME.match(self.name):
            raise InputError(
                f"method name {self.name!r}: use lower-case letters, digits and underscores, beginning with a letter"
            )
        if not self.summary.strip():
            raise InputError(f"method {self.name}: give a one-line summary")
        for field_name, text, may_be_empty in (
            ("entry", self.entry, False),
            ("options", self.options, True),
            ("training", self.training, True),
        ):
            if not (may_be_empty and text == "") and not _ENTRY.match(text):
                raise InputError(f"method {self.name}: {field_name} must read 'package.module:Class', not {text!r}")
        if self.requires_key and not self.uses_key:
            raise InputError(f"method {self.name}: requires_key without uses_key; set both or neither")
        if self.training and not self.learned:
            raise InputError(f"method {self.name}: training is for learned methods; set learned=True or drop it")
        if self.kind not in ("anonymizer", "generator"):
            raise InputError(f"method {self.name}: kind must be 'anonymizer' or 'generator', not {self.kind!r}")
        if self.kind == "generator" and (self.reversible or self.uses_key or not self.learned):
            raise InputError(f"method {self.name}: a generator is learned, has no key and recovers nothing")
        if self.status not in ("stable", "experimental"):
            raise InputError(f"method {self.name}: status must be 'stable' or 'experimental', not {self.status!r}")


_CLASSICS = "facezoo.methods.classics"
_DP_PIXELS = "facezoo.methods.dp_pixels"
_KSAME = "facezoo.methods.ksame"

_SDN = "facezoo.methods.sdn"
_MFM = "facezoo.methods.mfm"

_BUILT_IN: tuple[MethodInfo, ...] = (
    MethodInfo(
        name="black_box",
        summary="cover the face with one colour",
        entry=f"{_CLASSICS}.cover:BlackBox",
        options=f"{_CLASSICS}.config:BlackBoxOptions",
        source="book, section 3.1.1 (mask)",
    ),
    MethodInfo(
        name="dp_blur",
        summary="mosaic with Gaussian noise, blurred: differentially private about pixels, not about people",
        entry=f"{_DP_PIXELS}.method:DPBlur",
        options=f"{_DP_PIXELS}.config:DPBlurOptions",
        source="Fan 2019; book, section 5.2.3",
        status="experimental",
    ),
    MethodInfo(
        name="dp_kanonymity",
        summary="edit the attributes to those of the k nearest people, chosen privately (protects these people)",
        entry="facezoo.methods.dp_kanonymity.method:DPKAnonymity",
        options="facezoo.methods.dp_kanonymity.options:DPKAnonymityOptions",
        learned=True,
        source="book, chapter 4 (BMSB 2022); STGAN (CVPR 2019); AnonymousNet's selection (CVPRW 2019)",
        status="experimental",
        training="facezoo.methods.dp_kanonymity.training:DPKAnonymityTraining",
    ),
    MethodInfo(
        name="dp_pix",
        summary="mosaic with Laplace noise: differentially private about pixels, not about people",
        entry=f"{_DP_PIXELS}.method:DPPix",
        options=f"{_DP_PIXELS}.config:DPPixOptions",
        source="Fan 2018; book, sections 3.1.1 and 5.2.3",
        status="experimental",
    ),
    MethodInfo(
        name="dp_svd",
        summary="few singular values with Laplace noise: metric privacy of these values (weak: the vectors stay)",
        entry=f"{_DP_PIXELS}.method:DPSvd",
        options=f"{_DP_PIXELS}.config:DPSvdOptions",
        source="Fan 2019; book, sections 3.1.1 and 5.2.3",
        status="experimental",
    ),
    MethodInfo(
        name="eye_bar",
        summary="a bar over the eyes (weak: recognisers look at the whole face)",
        entry=f"{_CLASSICS}.cover:EyeBar",
        options=f"{_CLASSICS}.config:EyeBarOptions",
        source="book, section 3.1.4.2 (black eye bar)",
    ),
    MethodInfo(
        name="gaussian_blur",
        summary="Gaussian blur, strength relative to the face",
        entry=f"{_CLASSICS}.smooth:GaussianBlur",
        options=f"{_CLASSICS}.config:GaussianBlurOptions",
        source="book, section 3.1.1; Table 4.1 (r = 5, 20); Fig. 6.7 (sigma = 8)",
    ),
    MethodInfo(
        name="identity_dp",
        summary="Laplace noise on the identity vector: differentially private identity, a natural face, no way back",
        entry="facezoo.methods.identity_dp.method:IdentityDP",
        options="facezoo.methods.identity_dp.options:IdentityDPOptions",
        learned=True,
        source="book, chapter 5 (Wen et al., Neurocomputing 2022)",
        status="experimental",
    ),
    MethodInfo(
        name="identity_rotation",
        summary="rotate the identity vector by an angle set by the key; the face stays natural and can be recovered",
        entry="facezoo.methods.identity_rotation.method:IdentityRotation",
        options="facezoo.methods.identity_rotation.options:IdentityRotationOptions",
        learned=True,
        reversible=True,
        uses_key=True,
        requires_key=True,
        source="book, chapter 6 (Cao et al., ICCV 2021)",
        status="experimental",
        training="facezoo.methods.identity_rotation.training:IdentityRotationTraining",
    ),
    MethodInfo(
        name="ifadit",
        summary="another identity by key through an invertible flow, painted by StyleGAN2, undone by its inverse",
        entry="facezoo.methods.ifadit.method:IFadit",
        options="facezoo.methods.ifadit.options:IFaditOptions",
        learned=True,
        reversible=True,
        uses_key=True,
        requires_key=True,
        source="Yuan et al., iFADIT",
        status="experimental",
        training="facezoo.methods.ifadit.training:IFaditTraining",
    ),
    MethodInfo(
        name="ksame_eigen",
        summary="mean of the k most similar gallery faces, in eigenface space",
        entry=f"{_KSAME}.method:KSameEigen",
        options=f"{_KSAME}.config:KSameEigenOptions",
        source="Newton, Sweeney, Malin 2005; book, section 3.1.2",
    ),
    MethodInfo(
        name="ksame_furthest",
        summary="mean of k gallery faces that are far away; no result contains its own people",
        entry=f"{_KSAME}.method:KSameFurthest",
        options=f"{_KSAME}.config:KSameFurthestOptions",
        source="Meng, Sun 2014; book, section 3.1.2",
        status="experimental",
    ),
    MethodInfo(
        name="ksame_m",
        summary="mean shape and mean looks of the k most similar gallery faces (sharper than pixel by pixel)",
        entry=f"{_KSAME}.method:KSameModel",
        options=f"{_KSAME}.config:KSameModelOptions",
        source="Gross et al. 2006; book, section 3.1.2",
        status="experimental",
    ),
    MethodInfo(
        name="ksame_pixel",
        summary="mean of the k most similar gallery faces, pixel by pixel",
        entry=f"{_KSAME}.method:KSamePixel",
        options=f"{_KSAME}.config:KSamePixelOptions",
        source="Newton, Sweeney, Malin 2005; book, section 3.1.2",
    ),
    MethodInfo(
        name="ksame_select",
        summary="mean of the k most similar gallery faces with the same sex, age group or expression",
        entry=f"{_KSAME}.method:KSameSelect",
        options=f"{_KSAME}.config:KSameSelectOptions",
        source="Gross et al. 2005; book, section 3.1.2",
        status="experimental",
    ),
    MethodInfo(
        name="low_resolution",
        summary="shrink the face to a few pixels and enlarge it again",
        entry=f"{_CLASSICS}.smooth:LowResolution",
        options=f"{_CLASSICS}.config:LowResolutionOptions",
        source="Ryoo et al.; book, section 5.4.5 and Table 5.1 (Blur 7x7, 19x19)",
    ),
    MethodInfo(
        name="mfm",
        summary="another face by password and factors, from one network both ways; conflicts are resolved",
        entry=f"{_MFM}.method:MfM",
        options=f"{_MFM}.options:MfMOptions",
        learned=True,
        reversible=True,
        uses_key=True,
        requires_key=True,
        source="Pan, Chen, Wu, Multi-factor Modifier",
        status="experimental",
        training=f"{_MFM}.training:MfMTraining",
    ),
    MethodInfo(
        name="pixel_noise",
        summary="Gaussian noise on every pixel of the face (weak: denoisers undo it)",
        entry=f"{_CLASSICS}.noise:PixelNoise",
        options=f"{_CLASSICS}.config:PixelNoiseOptions",
        uses_key=True,
        source="book, section 3.1.1; Tables 4.1 (10, 30), 5.1 (9, 49); Fig. 6.7 (15)",
    ),
    MethodInfo(
        name="pixelation",
        summary="mosaic of square cells, size relative to the face",
        entry=f"{_CLASSICS}.smooth:Pixelation",
        options=f"{_CLASSICS}.config:PixelationOptions",
        source="book, section 3.1.1; Tables 4.1 (4x4, 8x8) and 5.1 (8x8, 16x16 at 256)",
    ),
    MethodInfo(
        name="face_painter",
        summary="people who do not exist, on a face mesh; other methods paint with it; anonymizes nothing by itself",
        entry="facezoo.methods.face_painter.people:FacePainterPeople",
        learned=True,
        source="ours; active appearance models: Cootes et al., ECCV 1998; projected GAN: Sauer et al., NeurIPS 2021",
        status="experimental",
        training="facezoo.methods.face_painter.training:FacePainterTraining",
        kind="generator",
    ),
    MethodInfo(
        name="stylegan2",
        summary="people who do not exist, for 'facezoo generate'; anonymizes nothing",
        entry="facezoo.methods.stylegan2.people:StyleGAN2",
        learned=True,
        source="Karras et al., CVPR 2020",
        status="experimental",
        training="facezoo.methods.stylegan2.training:StyleGAN2Training",
        kind="generator",
    ),
    MethodInfo(
        name="sdn",
        summary="another face by password and attributes, from two networks; recovered with both",
        entry=f"{_SDN}.method:SDN",
        options=f"{_SDN}.options:SDNOptions",
        learned=True,
        reversible=True,
        uses_key=True,
        requires_key=True,
        source="Pan, Chen, Wu, Electronics 2024, 13, 4398",
        status="experimental",
        training=f"{_SDN}.training:SDNTraining",
    ),
)
"""The methods of this package, by name. A new one is added here and nowhere else."""

_METHODS: dict[str, MethodInfo] = {}
_CLASSES: dict[str, type[Method]] = {}
_plugins_loaded = False

MethodClass = TypeVar("MethodClass", bound="type[Method]")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that does not exist: the nearest names first, then the whole list.

    Args:
        kind: what was looked for, e.g. "method".
        name: what was asked for.
        known: every name that exists.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return UnknownNameError(f"no {kind} is called {name!r}{hint} Known: {', '.join(names) or 'none'}")


def add_method(info: MethodInfo) -> None:
    """Enter a method in the table.

    Raises:
        InputError: the name is taken. Two methods under one name would make records ambiguous.
    """
    if info.name in _METHODS:
        raise InputError(
            f"method {info.name!r} is registered already ({_METHODS[info.name].entry}); choose another name"
        )
    _METHODS[info.name] = info


def register_method(
    name: str,
    *,
    summary: str,
    learned: bool = False,
    reversible: bool = False,
    uses_key: bool = False,
    requires_key: bool = False,
    source: str = "",
    status: Literal["stable", "experimental"] = "experimental",
    training: str = "",
) -> Callable[[MethodClass], MethodClass]:
    """Class decorator that enters a method of one's own in the table.

    Arguments are those of `MethodInfo`; the entry is the decorated class, the options are its ``options_class``.

    Raises:
        InputError: (when applied) the name is taken or an argument is malformed.
    """

    def enter(method_class: MethodClass) -> MethodClass:
        info = MethodInfo(
            name=name,
            summary=summary,
            entry=f"{method_class.__module__}:{method_class.__name__}",
            learned=learned,
            reversible=reversible,
            uses_key=uses_key,
            requires_key=requires_key,
            source=source,
            status=status,
            training=training,
        )
        _check_class(info, method_class)
        add_method(info)
        # The class itself is kept, because one that is defined inside a function cannot be found by its name.
        _CLASSES[name] = method_class
        return method_class

    return enter


def unregister_method(name: str) -> None:
    """Take a method out of the table (for tests and for programs that replace a method on purpose).

    Raises:
        UnknownNameError: no such method.
    """
    method_info(name)
    del _METHODS[name]
    _CLASSES.pop(name, None)


def list_methods(kind: Kind | None = "anonymizer") -> list[MethodInfo]:
    """Every known method, sorted by name. Imports no torch, unless an installed plug-in does.

    Args:
        kind: "anonymizer" (default), "generator", or None for both.
    """
    _load_plugins()
    return [_METHODS[name] for name in sorted(_METHODS) if kind is None or _METHODS[name].kind == kind]


def reversible_methods() -> list[str]:
    """Names of the methods whose result can be recovered."""
    return [info.name for info in list_methods() if info.reversible]


def method_info(name: str) -> MethodInfo:
    """The table's line for one method.

    Raises:
        UnknownNameError: no such method; the message lists the nearest names and all of them.
    """
    _load_plugins()
    try:
        return _METHODS[name]
    except KeyError:
        raise unknown_name("method", name, _METHODS) from None


def require_anonymizer(name: str, model: str = "") -> MethodInfo:
    """The table's line for a method that anonymizes.

    Args:
        name: the method.
        model: what the user called it, for the message.

    Raises:
        UnknownNameError: no such method.
        InputError: it is a generator.
    """
    info = method_info(name)
    if info.kind != "anonymizer":
        raise InputError(
            f"{model or name} makes people who do not exist and anonymizes nothing; "
            f"use it with: facezoo generate --model {model or name} -o FOLDER"
        )
    return info


def load_generator_class(name: str) -> type[PeopleGenerator]:
    """Import a generator's class (this imports torch).

    Raises:
        UnknownNameError: no such method.
        InputError: it is an anonymizer.
        FacezooError: its module cannot be imported, or the class is no generator.
    """
    from facezoo.methods.base import PeopleGenerator

    info = method_info(name)
    if info.kind != "generator":
        known = ", ".join(entry.name for entry in list_methods("generator")) or "none is installed"
        raise InputError(f"{name} anonymizes pictures and makes no people; generators: {known}")
    found: object = _load_entry(info, info.entry)
    if not (isinstance(found, type) and issubclass(found, PeopleGenerator)):
        raise FacezooError(f"method {name}: {info.entry} must be a subclass of facezoo.methods.base.PeopleGenerator")
    return found


def load_class(name: str) -> type[Method]:
    """Import a method's class (this imports torch).

    Raises:
        UnknownNameError: no such method.
        InputError: a generator, which is no method of anonymizing.
        FacezooError: its module cannot be imported, or the class contradicts the table.
    """
    info = require_anonymizer(name)
    if name not in _CLASSES:
        method_class = _load_entry(info, info.entry)
        _check_class(info, method_class)
        _CLASSES[name] = method_class
    return _CLASSES[name]


def load_options_class(name: str) -> type[Options]:
    """Import a method's options dataclass; for the methods of this package that imports no torch.

    Raises:
        UnknownNameError: no such method.
        FacezooError: the module cannot be imported.
    """
    from facezoo.methods.options import Options

    info = method_info(name)
    if name in _CLASSES:
        return _CLASSES[name].options_class
    if not info.options:
        return Options
    options_class: type[Options] = _load_entry(info, info.options)
    if not (isinstance(options_class, type) and issubclass(options_class, Options)):
        raise FacezooError(f"method {name}: {info.options} must be a subclass of facezoo.methods.options.Options")
    return options_class


def create(name: str, **options: object) -> Method:
    """Make a method that needs no checkpoint.

    Args:
        name: a name of `list_methods`.
        **options: fields of the method's options dataclass, checked one by one.

    Raises:
        UnknownNameError: no such method, or no such option; the message lists those that exist.
        InputError: an option out of range, or a learned method (which needs a checkpoint).
    """
    info = require_anonymizer(name)
    if info.learned:
        raise InputError(
            f"method {name} is learned and needs a checkpoint: use facezoo.from_pretrained('{name}.<tag>') "
            "or the folder of a trained model"
        )
    parsed = load_options_class(name).from_mapping(options)
    return load_class(name)(parsed)


def _load_entry(info: MethodInfo, entry: str) -> type:
    module_name, _, attribute = entry.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise FacezooError(
            f"method {info.name}: cannot import {module_name} ({error}); install what it needs"
        ) from error
    except AttributeError:
        raise FacezooError(
            f"method {info.name}: {module_name} has no {attribute}; its registry entry is wrong"
        ) from None
    return found  # whatever the entry names; the caller checks


def _check_class(info: MethodInfo, method_class: object) -> None:
    """Refuse a class that says other things about itself than the table, which is what users are shown."""
    from facezoo.methods.base import Method

    if not (isinstance(method_class, type) and issubclass(method_class, Method)):
        raise FacezooError(f"method {info.name}: {info.entry} must be a subclass of facezoo.methods.base.Method")
    for flag in ("name", "learned", "reversible", "uses_key", "requires_key"):
        told, is_so = getattr(info, flag), getattr(method_class, flag)
        if told != is_so:
            raise FacezooError(
                f"method {info.name}: the table says {flag}={told!r}, the class says {is_so!r}; make them agree"
            )


def _load_plugins() -> None:
    """Read the entry points of installed packages, once. A broken plug-in is warned about and left out."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            info = point.load()
            if not isinstance(info, MethodInfo):
                raise InputError(f"{point.value} is not a facezoo.registry.MethodInfo")
            add_method(info)
        except Exception as error:  # a stranger's module may raise anything, and must not take `facezoo list` down
            warnings.warn(f"facezoo: method plug-in {point.name!r} was left out: {error}", stacklevel=3)


for _info in _BUILT_IN:
    add_method(_info)
