"""``facezoo anonymize-dataset``."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import TYPE_CHECKING

from facezoo.cli.common import (
    Commands,
    add_command,
    add_search_options,
    import_part,
    names,
    parse_options,
    positive,
    print_error,
    progress_bar,
    quality,
    search_settings,
)
from facezoo.errors import InputError, KeyMaterialError

if TYPE_CHECKING:
    from facezoo.keys import Key


def add_anonymize_dataset(commands: Commands) -> None:
    """The command ``anonymize-dataset`` and its options."""
    parser = add_command(
        commands,
        "anonymize-dataset",
        "make the faces of a whole data set anonymous, on one machine or a Ray cluster",
        "  facezoo anonymize-dataset photos.parquet -o photos.anon/ --model gaussian_blur\n"
        "  facezoo anonymize-dataset shards/ -o anon/ --model identity_rotation --key-file /shared/my.key\n"
        "  facezoo anonymize-dataset shards/ -o anon/ --model pixelation --address auto --actors 64\n"
        "  facezoo anonymize-dataset shards/ -o anon/ --model pixelation --no-ray",
        " Reads parquet files with a column of encoded pictures, or tar shards (WebDataset). OUTPUT/part-*/ has the "
        "pictures in the same format with their records; failed.jsonl lists what failed, without pixels. The same "
        "command goes on where it stopped. On a cluster, input, output and key file have the same paths everywhere.",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="parquet or tar files, or folders of them")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the parts go")
    parser.add_argument("--model", required=True, metavar="NAME", help="see 'facezoo list'; or a folder, or org/name")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="option of the method ('facezoo info NAME')"
    )
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="file with the key or passphrase; every machine reads it itself, the key never travels",
    )
    parser.add_argument("--key-form", choices=("passphrase", "six-digits", "bits"), default="passphrase")
    parser.add_argument("--column", default="image", metavar="NAME", help="parquet: where the pictures are")
    parser.add_argument(
        "--keep-columns",
        type=names,
        default=(),
        metavar="A,B",
        help="copy these columns (tar: endings) unchanged; all others are left out, for they may tell who it is",
    )
    parser.add_argument("--revision", help="revision of a Hugging Face model")
    parser.add_argument("--device", default="cpu", help="where a learned model runs: cpu, cuda, ... (default: cpu)")
    add_search_options(parser)
    parser.add_argument("--verify", choices=("on", "add", "off"), default="on", help="second detector, as in anonymize")
    parser.add_argument(
        "--allow-no-face", choices=("copy", "skip"), help="picture without a face: copy or skip it (default: an error)"
    )
    parser.add_argument("--seal", action="store_true", help="put the originals, encrypted, into the records")
    parser.add_argument("--keep", metavar="FOLDER", help="people in these pictures are left as they are")
    parser.add_argument(
        "--metadata", choices=("drop", "keep-safe", "keep-place"), default="drop", help="as in anonymize"
    )
    parser.add_argument(
        "--format", choices=("png", "jpg", "webp"), default="png", help="of the pictures (default: png)"
    )
    parser.add_argument("--quality", type=quality, default=95, help="of jpg and webp, 1 to 100 (default: 95)")
    parser.add_argument("--part", type=positive, default=64, metavar="N", help="pictures a part (default: 64)")
    parser.add_argument("--actors", type=positive, metavar="N", help="processes (default: one a processor)")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="G", help="GPUs of each process, 0.25 say")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="of each process (default: 1)")
    parser.add_argument("--address", metavar="HOST:PORT", help="Ray cluster, or auto (default: Ray on this machine)")
    parser.add_argument("--no-ray", action="store_true", help="one process, without Ray")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.set_defaults(command=_anonymize_dataset)


def _anonymize_dataset(arguments: argparse.Namespace) -> int:
    from facezoo.batch import Settings
    from facezoo.hub.manifest import resolve_model
    from facezoo.keys import new_salt
    from facezoo.registry import require_anonymizer
    from facezoo.scale.parts import PartWorker, Run, find_inputs, plan_run, summarize

    if not 0.0 <= arguments.gpus < 1e6:
        raise InputError("--gpus must be 0 or more")
    if arguments.no_ray and (arguments.address or arguments.actors or arguments.gpus):
        raise InputError("--no-ray is one process here: leave out --address, --actors and --gpus")
    engine = None if arguments.no_ray else import_part("facezoo.scale.ray_engine", "anonymizing on Ray", "ray")
    inputs, kind = find_inputs(arguments.inputs)
    if arguments.keep is not None and not Path(arguments.keep).is_dir():
        raise InputError(f"--keep {arguments.keep}: no such folder; give a folder with pictures of the people to keep")
    model = resolve_model(arguments.model, revision=arguments.revision)
    info = require_anonymizer(model.method, model.name)
    key_file = _key_file(arguments, needed=arguments.seal or info.requires_key, used=info.uses_key)
    key = _key(key_file, arguments.key_form)
    local = Path(arguments.model)
    settings = Settings(
        task="anonymize",
        model=str(local.resolve()) if local.is_dir() else arguments.model,
        revision=arguments.revision,
        **search_settings(arguments),
        device=arguments.device,
        options=parse_options(model.method, arguments.option),
        keep=None if arguments.keep is None else str(Path(arguments.keep).resolve()),
        seal=arguments.seal,
        verify=arguments.verify,
        no_face=arguments.allow_no_face or "refuse",
        metadata=arguments.metadata,
        file_format=arguments.format,
        quality=arguments.quality,
        salt=base64.b64encode(new_salt()).decode(),
    )
    run = Run(
        kind=kind,
        output=str(Path(arguments.output).resolve()),
        settings=settings,
        model_sha256=model.sha256 or "",
        key_file=key_file,
        key_form=arguments.key_form,
        column=arguments.column,
        keep_columns=arguments.keep_columns,
        threads=arguments.threads,
    )
    run, parts = plan_run(run, inputs, settings.fingerprint(key), arguments.part)
    if key is not None:
        run = run.with_key_id(key.key_id(base64.b64decode(run.settings.salt)))
    waiting = [part for part in parts if not run.is_done(part)]
    with progress_bar(sum(part.count for part in waiting), "picture", arguments.quiet) as advance:

        def report(pictures: int) -> None:
            for _ in range(pictures):
                advance()

        try:
            if engine is not None:
                engine.run_parts(
                    run, waiting, address=arguments.address, actors=arguments.actors, gpus=arguments.gpus, report=report
                )
            elif waiting:
                worker = PartWorker(run)
                for part in waiting:
                    report(int(worker.do(part)["pictures"]))
        finally:
            summary = summarize(run, parts)
    if not arguments.quiet:
        skipped = f", {summary.skipped} skipped (no face)" if summary.skipped else ""
        print(f"{run.output}: {summary.done} pictures anonymized{skipped}, {summary.failed} failed")
    if summary.missing:
        print_error(f"{summary.missing} parts are not done; run the same command again")
        return 1
    if summary.failed:
        print_error(f"{summary.failed} pictures failed and are not in the output: see {run.output}/failed.jsonl")
        return summary.exit_codes[0] if len(summary.exit_codes) == 1 else 1
    return 0


def _key_file(arguments: argparse.Namespace, *, needed: bool, used: bool) -> str | None:
    """The key file, as every machine will open it.

    Raises:
        KeyMaterialError: a key is needed, and there is no file that all processes could read.
    """
    if arguments.key_file is None:
        if needed:
            raise KeyMaterialError(
                "many processes cannot ask for a key: put it into a file that all machines can read, and name it with "
                "--key-file"
            )
        return None
    if arguments.key_file == "-":
        raise KeyMaterialError("many processes cannot read one standard input: give --key-file the name of a file")
    return str(Path(arguments.key_file).resolve()) if needed or used else None


def _key(key_file: str | None, form: str) -> Key | None:
    from facezoo.keys import Key

    return None if key_file is None else Key.from_file(key_file, form=form)  # type: ignore[arg-type] # argparse's choices
