"""Parts on Ray Data: a pool of actors over a cluster, each with the model loaded once.

What flows through Ray are numbers and paths: a part's place on the way in, its counts on the way out. Pictures and keys
never enter its object store or its logs. The pool takes the next part when an actor is free and two wait at most for
each (back-pressure), so that memory does not grow with the data set. When a machine is lost Ray starts its actors
elsewhere and repeats their parts; `facezoo.scale.parts` makes that harmless.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from facezoo import errors
from facezoo.errors import FacezooError, InputError
from facezoo.scale.parts import Part, PartWorker, Run

__all__ = ["connect", "run_parts"]

_WAITING_PARTS = 2
"""Parts that may wait for an actor: one in work, one ready, so that it is never idle."""

_MOST_BLOCKS = 2000
"""Ray's bookkeeping grows with its blocks; longer runs get several parts a block."""


class _Worker:
    """What an actor runs. An error that every part would meet is told with each, for the driver to stop."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._worker: PartWorker | None = None
        self._error: FacezooError | None = None
        try:
            self._worker = PartWorker(Run.from_dict(run))
        except FacezooError as error:
            self._error = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part(**{name: row[name] for name in ("number", "source", "first", "row", "count")})
        error = self._error
        if self._worker is not None:
            try:
                report = self._worker.do(part)
                return {"part": part.number, "pictures": int(report["pictures"]), "error": "", "kind": ""}
            except FacezooError as raised:
                error = raised
        assert error is not None  # noqa: S101 (no worker without an error)
        return {"part": part.number, "pictures": 0, "error": str(error), "kind": type(error).__name__}


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or started on this machine for as long as the block lasts.

    Args:
        address: Of the cluster ("auto", "HOST:PORT"); None starts Ray here, on the loopback only.

    Raises:
        FacezooError: Ray is not installed.
        InputError: there is no cluster at the address.
    """
    # A key in the environment would be inherited by every process that Ray starts here, and shown in its tables.
    os.environ.pop("FACEZOO_KEY", None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise FacezooError(
            f"Ray is not available here ({error}); install it with: pip install 'facezoo[ray]'"
        ) from error
    mine = not ray.is_initialized()
    if mine:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
            else:
                ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(
                f"no Ray cluster at {address or 'this machine'} ({text}); start one with: ray start"
            ) from error
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def run_parts(
    run: Run,
    parts: Sequence[Part],
    *,
    address: str | None = None,
    actors: int | None = None,
    gpus: float = 0.0,
    report: Callable[[int], None] | None = None,
) -> None:
    """Does parts on a cluster; returns when all are committed.

    Args:
        run: The run; its output folder, input files and key file have the same paths on all machines.
        parts: What is to be done.
        address: See ``connect``.
        actors: Processes; None: one for each processor (or GPU share) of the cluster.
        gpus: Share of a GPU for each.
        report: Called with the number of pictures after each part.

    Raises:
        FacezooError: of the class and with the text of the first part that could not be done; the others are
            finished, and the same call goes on later.
    """
    if not parts:
        return
    with connect(address) as ray:
        resources = ray.cluster_resources()
        size = actors or int(resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)) or 1
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [dataclasses.asdict(part) for part in parts]
        reports = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(
            _Worker,
            fn_constructor_args=(run.to_dict(),),
            compute=ray.data.ActorPoolStrategy(
                size=min(size, len(parts)), max_tasks_in_flight_per_actor=_WAITING_PARTS
            ),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        refused: dict[str, Any] | None = None
        try:
            for row in reports.iter_rows():
                if row["error"]:
                    refused = refused or row
                elif report is not None:
                    report(int(row["pictures"]))
        except ray.exceptions.RayError as error:
            text = " ".join(str(error).split())[:300]
            raise FacezooError(f"Ray gave up ({text}); what is finished stays, run the same command again") from error
    if refused is not None:
        kind = getattr(errors, refused["kind"], FacezooError)
        raise kind(f"{refused['error']}; what is finished stays in {run.output}")
