"""The work directory of a run: its files are written during the run, and read back.

====================  ==========================================================
``config.json``       the resolved settings
``metrics.jsonl``     one JSON record per line (pretraining, rounds, evaluations)
``tensorboard/``      the numbers of ``metrics.jsonl`` as event files
``summary.json``      the results, written at the end
``evaluation.npz``    curves, per-client values and example images of the report
``report.html``       the report, and its plots under ``plots/``
====================  ==========================================================

Every file except ``metrics.jsonl`` appears under its name only when it is
complete, so a killed run leaves no half-written file behind.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fedfr_jax.atomic import write_text
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.runtime.changes import MAY_CHANGE, check_changes
from fedfr_jax.runtime.evaluation_file import EVALUATION, write_evaluation
from fedfr_jax.runtime.evaluation_file import read_evaluation as read_evaluation  # noqa: PLC0414 - part of this module
from fedfr_jax.runtime.json_file import json_text, plain, read_json, write_json
from fedfr_jax.runtime.metrics_file import line_of, read_rows

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

CONFIG, METRICS, SUMMARY, TENSORBOARD = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "tensorboard",
)
DIGESTS = "config.json.sha256"
_CHECK = "check"  # of the summary: SHA-256 of the rest, as written in the file


def announce_config(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Stores the digest of a new ``config.json``, in addition to that of the present file.

    Called before the file is written, so that after a kill in between the digest still matches.
    """
    path = pathlib.Path(workdir) / DIGESTS
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
    config, digests = read_json(path), path.with_name(DIGESTS)
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
        return ""  # not written by this program


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl`` in the order they were written.

    A killed run may leave a last line without a line end. It is left out unless it
    is complete.

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
    """Starts or resumes a run in ``workdir`` and writes its ``config.json``.

    Args:
      workdir: created if it does not exist.
      config: resolved settings, nested dicts.
      resume: continue the run that is there; if there is none, start a new
        one. The caller then drops the records that are newer than the restored
        state with :meth:`RunWriter.truncate_after`. A change of settings becomes
        a record of kind "change".
      may_change: settings that a resumed run may change, by dotted name; a name
        that ends in a dot means all settings below it, "" means all.

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
    """Makes a work directory, or another folder for results; ``~`` is the home directory.

    Raises:
      InputError: it cannot be made.
    """
    folder = pathlib.Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error}") from error
    return folder


class RunWriter:
    """Appends records to ``metrics.jsonl`` and to TensorBoard, and writes results.

    Made by :func:`open_run`. A context manager: leaving it closes the event files.

    Attributes:
      workdir: the directory.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir)
        self._boards: dict[str, SummaryWriter] = {}
        self._purge: dict[str, int] = {}  # first step of each kind that is written again
        self._ends_whole = False  # whether the last line of the metrics was checked

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one record; its numbers may be NumPy or JAX scalars.

        Args:
          row: has ``kind``: "pretrain" (with ``step``), "round" (with ``round``)
            or "evaluation" (with ``round`` and ``model``); other kinds are
            kept in ``metrics.jsonl`` only.

        Raises:
          InputError: ``kind``, or a field that it needs, is missing.
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
        """Adds a record of changed settings, unless the last record is the same.

        Args:
          changed: from :func:`fedfr_jax.runtime.changes.changed_settings`.
        """
        rows = read_metrics(self.workdir) if (self.workdir / METRICS).exists() else []
        done = max((row["round"] for row in rows if row.get("kind") == "round"), default=0)
        row = plain({"kind": "change", "round": done, "settings": changed})
        if changed and row not in [r for r in rows if r.get("kind") == "change"][-1:]:
            self.append(row)

    def _end_last_line(self) -> None:
        """Completes or drops the last line of a killed run."""
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
        # With one TensorBoard run per model, each chart shows one metric of all models.
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
            from tensorboardX import SummaryWriter  # noqa: PLC0415 (slow where torch is installed)

            self._boards[name] = SummaryWriter(
                str(self.workdir / TENSORBOARD / name),
                purge_step=self._purge.get(kind),
                filename_suffix=f".{os.getpid()}.{id(self)}",
            )
        for key, value in scalars.items():
            self._boards[name].add_scalar(prefix + key, value, step)

    def truncate_after(self, round: int, pretrain_epoch: int | None = None) -> int:
        """Drops the records that a resumed run will write again.

        Args:
          round: the restored round (0 = before the first). Later "round" and
            "evaluation" records are dropped, later "change" records are assigned to
            this round. -1 drops all of them.
          pretrain_epoch: if given, later "pretrain" records are dropped, too.

        Returns:
          The number of dropped records, without an incomplete last line.

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
        """Flushes the event files (``metrics.jsonl`` is always up to date)."""
        for board in self._boards.values():
            board.flush()

    def close(self) -> None:
        """Closes the event files; a later :meth:`append` opens new ones."""
        for board in self._boards.values():
            board.close()
        self._boards = {}
