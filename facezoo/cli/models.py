"""``facezoo list``, ``info``, ``key`` and ``demo``."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from facezoo.cli.common import Commands, add_command
from facezoo.errors import FacezooError


def add_list(commands: Commands) -> None:
    """The command ``list`` and its options."""
    parser = add_command(commands, "list", "list the models", "  facezoo list\n  facezoo list --json")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(command=_list)


def add_info(commands: Commands) -> None:
    """The command ``info`` and its options."""
    parser = add_command(
        commands, "info", "tell about one model", "  facezoo info gaussian_blur\n  facezoo info NAME --json"
    )
    parser.add_argument("name", metavar="NAME", help="a model of 'facezoo list', a checkpoint folder, or org/name")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(command=_info)


def add_key(commands: Commands) -> None:
    """The command ``key`` and its options."""
    parser = add_command(commands, "key", "make a key file", "  facezoo key new my.key")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    new = add_command(
        actions,
        "new",
        "make a key file with a fresh random key",
        "  facezoo key new my.key",
        " Keep it safe: whoever has it can recover the pictures, and without it nobody can.",
    )
    new.add_argument("file", metavar="FILE", help="new file; an existing one is never replaced")
    new.set_defaults(command=_key_new)


def add_demo(commands: Commands) -> None:
    """The command ``demo`` and its options."""
    parser = add_command(
        commands,
        "demo",
        "show every model on a public-domain picture",
        "  facezoo demo\n  facezoo demo -o my_demo --model runs/mine/checkpoint",
        " Writes one PNG sheet and prints how far recognisers are from knowing the faces. No network is needed.",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="learned model (or its folder) to show instead of the bundled ones; may be repeated",
    )
    parser.add_argument("-o", "--output", default="demo_out", metavar="FOLDER", help="default: demo_out")
    parser.set_defaults(command=_demo)


def _list(arguments: argparse.Namespace) -> int:
    from facezoo.hub.models import flagship_of, list_models

    models = list_models()
    if arguments.json:
        print(json.dumps([model.to_dict() for model in models], indent=2))
        return 0
    rows = [("NAME", "KIND", "REVERSIBLE", "KEY", "STATUS", "WHAT")]
    for model in models:
        yes = ("yes" if model.reversible else "no", "yes" if model.uses_key else "no")
        rows.append((model.name, model.kind, *yes, model.status, model.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)) + "  " + row[5])
    there = [model.name for model in models if model.reversible and model.uses_key and model.status != "no checkpoint"]
    for line in _which(flagship_of(there)):
        print(line)
    return 0


def _which(flagship: str) -> list[str]:
    """Which model for what."""
    lines = ["", "WHICH ONE", "  publishing tomorrow, no way back   gaussian_blur: strong by default, needs no key"]
    if flagship:
        lines += [
            f"  keep who is who in a data set      {flagship}: one stranger a person under one key",
            f"  going back with the key            {flagship}: save as PNG, or add --seal to be certain",
        ]
    return lines


def _info(arguments: argparse.Namespace) -> int:
    from facezoo.hub.manifest import resolve_model
    from facezoo.registry import list_methods, load_options_class, method_info

    names = {info.name for info in list_methods(kind=None)}
    manifest: dict[str, Any] = {}
    model_name = arguments.name
    if arguments.name in names and method_info(arguments.name).learned:
        method = arguments.name  # the method itself can be told about whether or not a checkpoint is at hand
        with contextlib.suppress(FacezooError):
            resolved = resolve_model(arguments.name)
            model_name, manifest = resolved.name, dict(resolved.manifest or {})
    else:
        resolved = resolve_model(arguments.name)
        method, model_name, manifest = resolved.method, resolved.name, dict(resolved.manifest or {})
    info = method_info(method)
    generator = info.kind == "generator"
    documented = {} if generator else load_options_class(method).documented()
    defaults = {} if generator else load_options_class(method).defaults()
    content: dict[str, Any] = {
        "name": model_name,
        "method": info.name,
        "summary": manifest.get("summary") or info.summary,
        "kind": "generator" if generator else "learned" if info.learned else "classic",
        "reversible": info.reversible,
        "uses_key": info.uses_key,
        "requires_key": info.requires_key,
        "status": manifest.get("status", "no checkpoint" if info.learned else info.status),
        "source": info.source,
        "options": {
            name: {
                "default": defaults[name] if _is_plain(defaults[name]) else str(defaults[name]),
                "doc": " ".join(note.doc.split()),
                "unit": note.unit,
                "minimum": note.minimum,
                "maximum": note.maximum,
                "choices": list(note.choices),
            }
            for name, note in documented.items()
        },
    }
    for field in ("version", "licence", "crop_size", "metrics", "training"):
        if field in manifest:
            content[field] = manifest[field]
    if arguments.json:
        print(json.dumps(content, indent=2))
        return 0
    options = content.pop("options")
    for name, value in content.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        if isinstance(value, dict):
            if value:
                print(f"{name.replace('_', ' ')}:")
                for inner, figure in value.items():
                    if not isinstance(figure, dict):
                        print(f"  {inner}: {figure}")
                if deep := [inner for inner, figure in value.items() if isinstance(figure, dict) and figure]:
                    print(f"  more with --json: {', '.join(deep)}")
        elif value not in ("", None):
            print(f"{name.replace('_', ' ')}: {value}")
    print("options:" if options else "options: none")
    for name, note in options.items():
        limits = ", ".join(note["choices"]) or " to ".join(
            f"{bound:g}" for bound in (note["minimum"], note["maximum"]) if bound is not None
        )
        facts = "; ".join(filter(None, [f"default {note['default']}", note["unit"], limits]))
        print(f"  {name}: {note['doc']} ({facts})")
    return 0


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


def _key_new(arguments: argparse.Namespace) -> int:
    from facezoo.keys import Key

    Key.generate_file(arguments.file)
    print(f"{arguments.file}: a new random key; keep it safe, nobody can recover your pictures without it")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from facezoo.demo import run_demo

    run_demo(Path(arguments.output), learned=arguments.model)
    return 0
