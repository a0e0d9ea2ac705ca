"""The work directory of a run: what is written while it runs, and read back.

====================  ==========================================================
``config.json``       the resolved settings
``metrics.jsonl``     one JSON object per row (pretraining, rounds, evaluations)
``tensorboard/``      the numbers of ``metrics.jsonl`` as event files
``summary.json``      the results, written at the end
``evaluation.npz``    curves, per-client values and example images of the report
``report.html``       the report, and its plots under ``plots/``
====================  ==========================================================

Every file but ``metrics.jsonl`` appears under its name only when it is
complete, so a run that is killed leaves no half-written one behind.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from tensorboardX import SummaryWriter

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.runtime.changes import MAY_CHANGE, check_changes
from fedfr_jax.runtime.evaluation_file import EVALUATION, write_evaluation
from fedfr_jax.runtime.evaluation_file import read_evaluation as read_evaluation  # noqa: PLC0414 - part of this module
from fedfr_jax.runtime.json_file import json_text, plain, read_json, write_json
from fedfr_jax.runtime.metrics_file import line_of, read_rows

CONFIG, METRICS, SUMMARY, TENSORBOARD = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "tensorboard",
)
_DIGESTS = "config.json.sha256"
_CHECK = "check"  # of the summary: SHA-256 of the rest, as it stands in the file


def announce_config(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Notes the digest of a new ``config.json``, beside that of the file that is there.

    Called before the file is written, so that a kill between the two leaves one that is known.
    """
    path = pathlib.Path(workdir) / _DIGESTS
    earlier = path.read_text().split()[-1:] if path.exists() else []
    new = hashlib.sha256(json_text(config).encode()).hexdigest()
    write_text(path, "\n".join([*earlier, new]) + "\n")


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The resolved settings of a run (``config.json``).

    Raises:
      InputError: as :func:`read_json`.
      DamagedError: the file is not as it was written.
    """
    path = pathlib.Path(workdir) / CONFIG
    config, digests = read_json(path), path.with_name(_DIGESTS)
    if digests.exists() and hashlib.sha256(path.read_bytes()).hexdigest().encode() not in (
        digests.read_bytes().split()
    ):
        raise DamagedError(
            f"{path} is damaged or was changed by hand; restore it, and give other "
            "settings on the command line"
        )
    return config


def read_summary(workdir: str | os.PathLike) -> dict[str, Any]:
    """The results of a run (``summary.json``), without their checksum.

    Raises:
      InputError: as :func:`read_json`.
      DamagedError: the file is not as it was written.
    """
    path = pathlib.Path(workdir) / SUMMARY
    summary = read_json(path)
    if summary.pop(_CHECK, None) != _digest(summary):
        raise DamagedError(
            f"{path} is damaged or was changed by hand; delete it and evaluate the "
            f"run again: python -m fedfr_jax.evaluate --workdir={workdir}"
        )
    return summary


def _digest(content: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(json_text(content).encode()).hexdigest()
    except (ValueError, RecursionError, InputError):
        return ""  # nothing that was written here


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` in the order they were written.

    A last line without a line end is what a killed run leaves behind, and is
    left out unless it is complete.

    Raises:
      InputError: the file is missing, or another line is damaged.
    """
    return read_rows(pathlib.Path(workdir) / METRICS)


def holds_run(workdir: str | os.PathLike) -> bool:
    """Whether a run has written its settings or results into this directory."""
    workdir = pathlib.Path(workdir)
    return any((workdir / name).exists() for name in (CONFIG, METRICS, SUMMARY, EVALUATION))


def open_run(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    resume: bool = False,
    may_change: Sequence[str] = MAY_CHANGE,
) -> RunWriter:
    """Starts or takes up a run in ``workdir`` and writes its ``config.json``.

    Args:
      workdir: created where it does not exist.
      config: resolved settings, nested dicts.
      resume: take up the run that is there; where there is none, a new one
        starts. The caller then drops the rows that the restored state has not
        seen with :meth:`RunWriter.truncate_after`. A change of settings becomes
        a row of kind "change".
      may_change: settings that a resumed run may change, by dotted name; a name
        that ends in a dot stands for all below it, "" for all.

    Raises:
      InputError: the directory cannot be made, holds a run and ``resume`` is
        off, or the run to resume had other settings.
    """
    workdir = make_folder(workdir)
    if holds_run(workdir) and not resume:
        raise InputError(
            f"{workdir} already holds a run; continue it with --resume, or choose another --workdir"
        )
    writer = RunWriter(workdir)
    if resume and (workdir / CONFIG).exists():
        changed = check_changes(workdir, read_config(workdir), config, may_change)
        writer.append_change(changed)
    write_json(workdir / CONFIG, config)
    return writer


def make_folder(folder: str | os.PathLike) -> pathlib.Path:
    """Makes a work directory; ``~`` is the home directory.

    Raises:
      InputError: it cannot be made.
    """
    folder = pathlib.Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the work directory {folder} cannot be made: {error}") from error
    return folder


class RunWriter:
    """Appends rows to ``metrics.jsonl`` and to TensorBoard, and writes results.

    Made by :func:`open_run`. A context manager: leaving it closes the event files.

    Attributes:
      workdir: the directory.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir)
        self._boards: dict[str, SummaryWriter] = {}
        self._purge: dict[str, int] = {}  # first step of each kind that is written anew
        self._ends_whole = False  # whether the last line of the metrics was looked at

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row; its numbers may be NumPy or JAX scalars.

        Args:
          row: has ``kind``: "pretrain" (with ``step``), "round" (with ``round``)
            or "evaluation" (with ``round`` and ``model``); other kinds are
            kept in ``metrics.jsonl`` only.

        Raises:
          InputError: ``kind``, or what goes with it, is missing.
        """
        row = plain(row)
        needed = {"pretrain": ("step",), "round": ("round",), "evaluation": ("round", "model")}
        kind = row.get("kind")
        missing = [key for key in ("kind", *needed.get(str(kind), ())) if row.get(key) is None]
        if missing:
            raise InputError(f"a row of {METRICS} lacks {', '.join(missing)}: {row}")
        self._end_last_line()
        with open(self.workdir / METRICS, "a", encoding="utf-8") as file:
            file.write(line_of(row))
        if kind in needed:
            self._to_board(kind, row)

    def append_change(self, changed: Mapping[str, tuple]) -> None:
        """Adds a row that tells of changed settings, unless the last one does.

        Args:
          changed: from :func:`fedfr_jax.runtime.changes.changed_settings`.
        """
        rows = read_metrics(self.workdir) if (self.workdir / METRICS).exists() else []
        done = max((row["round"] for row in rows if row.get("kind") == "round"), default=0)
        row = plain({"kind": "change", "round": done, "settings": changed})
        if changed and row not in [r for r in rows if r.get("kind") == "change"][-1:]:
            self.append(row)

    def _end_last_line(self) -> None:
        """Ends or drops the line that a killed run has left incomplete."""
        path = self.workdir / METRICS
        if not self._ends_whole and path.exists():
            text = path.read_bytes()
            if text and not text.endswith(b"\n"):
                self._rewrite(read_metrics(self.workdir))
        self._ends_whole = True

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.workdir / METRICS, "".join(map(line_of, rows)))

    def _to_board(self, kind: str, row: Mapping[str, Any]) -> None:
        step = row["step" if kind == "pretrain" else "round"]
        # One TensorBoard run per model draws the models into one chart per metric.
        name = f"evaluation-{quote(row['model'], safe=' ')}" if kind == "evaluation" else kind
        prefix = "" if kind == "evaluation" else f"{kind}/"
        scalars = {
            key: value
            for key, value in row.items()
            if key not in ("step", "round", "epoch")
            and not isinstance(value, bool)
            and isinstance(value, (int, float))
        }
        if name not in self._boards and scalars:
            self._boards[name] = SummaryWriter(
                str(self.workdir / TENSORBOARD / name),
                purge_step=self._purge.get(kind),
                filename_suffix=f".{os.getpid()}.{id(self)}",
            )
        for key, value in scalars.items():
            self._boards[name].add_scalar(prefix + key, value, step)

    def truncate_after(self, round: int, pretrain_epoch: int | None = None) -> int:
        """Drops the rows that a resumed run will write again.

        Args:
          round: the restored round (0 = before the first); "round" and
            "evaluation" rows beyond it go, and a "change" beyond it is now of it. -1
            drops all of them.
          pretrain_epoch: if given, "pretrain" rows beyond this epoch go as well.

        Returns:
          The number of rows dropped, an incomplete last line not counted.

        Raises:
          InputError: ``metrics.jsonl`` is corrupt.
        """
        self.close()
        path = self.workdir / METRICS
        rows = read_metrics(self.workdir) if path.exists() else []

        def stays(row):
            if row.get("kind") == "pretrain":
                return pretrain_epoch is None or row.get("epoch", 0) <= pretrain_epoch
            return row.get("round") is None or row["round"] <= round

        rows = [
            row | {"round": round}
            if row.get("kind") == "change" and row["round"] > round >= 0
            else row
            for row in rows
        ]
        kept = [row for row in rows if stays(row)]
        self._rewrite(kept)
        steps = [row["step"] for row in kept if row.get("kind") == "pretrain"]
        self._purge = {
            "pretrain": max(steps, default=-1) + 1,
            "round": round + 1,
            "evaluation": round + 1,
        }
        return len(rows) - len(kept)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``."""
        content = dict(plain(summary))
        write_json(self.workdir / SUMMARY, content | {_CHECK: _digest(content)})

    def write_evaluation(self, **parts: Any) -> None:
        """Writes ``evaluation.npz``; the arguments are those of :func:`write_evaluation`."""
        write_evaluation(self.workdir, **parts)

    def flush(self) -> None:
        """Brings the event files up to date (``metrics.jsonl`` always is)."""
        for board in self._boards.values():
            board.flush()

    def close(self) -> None:
        """Closes the event files; a later :meth:`append` opens new ones."""
        for board in self._boards.values():
            board.close()
        self._boards = {}
