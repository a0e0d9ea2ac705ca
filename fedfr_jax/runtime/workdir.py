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

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from tensorboardX import SummaryWriter

from fedfr_jax.data.arrays import load_arrays
from fedfr_jax.errors import InputError

CONFIG, METRICS, SUMMARY, EVALUATION, TENSORBOARD = (
    "config.json", "metrics.jsonl", "summary.json", "evaluation.npz", "tensorboard")
_MAY_CHANGE = ("fed.rounds", "eval.", "engine.", "checkpoint.", "data.workers",
               "data.max_megapixels", "data.images", "data.resident_gib",
               "data.verification_sets", "data.verification_labels")
_IMAGE_KEYS = {"hard_negatives": ("local_image", "public_image"),
               "mistakes": ("image_a", "image_b")}


def plain(value: Any) -> Any:
    """Turns a value into what JSON can hold.

    NumPy and JAX scalars become Python numbers, arrays and tuples become lists,
    keys become text, and NaN and infinities become ``None``.

    Raises:
      InputError: a value has no JSON form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufU":
        raise InputError(f"a value of type {type(value).__name__} cannot be written as JSON: "
                         f"{str(value)[:80]!r}")
    return plain(array.tolist())


def _replace(path: pathlib.Path, write) -> None:
    """Calls ``write(file)`` on a temporary file, then gives it the name ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` (see :func:`plain`) as indented JSON, all of it or nothing."""
    text = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
    _replace(pathlib.Path(path), lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
      InputError: the file is missing, or is not a JSON object.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: is {path.parent} the work directory of a run "
                         "that got this far?") from None
    except (ValueError, RecursionError) as error:  # no JSON, too many digits, too deep
        raise InputError(f"{path} is not valid JSON ({error}); delete it or restore it") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The resolved settings of a run (``config.json``); raises as :func:`read_json`."""
    return read_json(pathlib.Path(workdir) / CONFIG)


def read_summary(workdir: str | os.PathLike) -> dict[str, Any]:
    """The results of a run (``summary.json``); raises as :func:`read_json`."""
    return read_json(pathlib.Path(workdir) / SUMMARY)


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` in the order they were written.

    A last line without a line end is what a killed run leaves behind, and is
    left out unless it is complete.

    Raises:
      InputError: the file is missing, or another line is not a JSON object.
    """
    path = pathlib.Path(workdir) / METRICS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: is {path.parent} the work directory of a run?"
                         ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text ({error}); delete it or restore it") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number}, is not valid JSON ({error}); delete that "
                             "line or restore the file") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}, is not a JSON object; delete that line")
        rows.append(row)
    return rows


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple]:
    """Settings that differ between two nested dicts: dotted name -> (old, new).

    A setting that one of them lacks counts as ``None`` there.
    """
    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    before, after = dict(flat(plain(old))), dict(flat(plain(new)))
    return {key: (before.get(key), after.get(key)) for key in sorted(before | after)
            if before.get(key) != after.get(key)}


def holds_run(workdir: str | os.PathLike) -> bool:
    """Whether a run has written its settings or results into this directory."""
    workdir = pathlib.Path(workdir)
    return any((workdir / name).exists() for name in (CONFIG, METRICS, SUMMARY, EVALUATION))


def open_run(
    workdir: str | os.PathLike, config: Mapping[str, Any], resume: bool = False,
    may_change: Sequence[str] = _MAY_CHANGE,
) -> RunWriter:
    """Starts or takes up a run in ``workdir`` and writes its ``config.json``.

    Args:
      workdir: created where it does not exist.
      config: resolved settings, nested dicts.
      resume: take up the run that is there; where there is none, a new one
        starts. The caller then drops the rows that the restored state has not
        seen with :meth:`RunWriter.truncate_after`.
      may_change: settings that a resumed run may change, by dotted name; a name
        that ends in a dot stands for all below it.

    Raises:
      InputError: the directory cannot be made, holds a run and ``resume`` is
        off, or the run to resume had other settings.
    """
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the work directory {workdir} cannot be made: {error}") from error
    if holds_run(workdir) and not resume:
        raise InputError(f"{workdir} already holds a run; continue it with --resume, or choose "
                         "another --workdir")
    if resume and (workdir / CONFIG).exists():
        changed = changed_settings(read_config(workdir), config)
        fixed = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items()
                 if not any(key == name or (name.endswith(".") and key.startswith(name))
                            for name in may_change)]
        if fixed:
            raise InputError(f"the run in {workdir} had other settings ({'; '.join(fixed)}); "
                             "resume it with the ones in its config.json, or choose another "
                             "--workdir")
    write_json(workdir / CONFIG, config)
    return RunWriter(workdir)


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
        missing = [key for key in ("kind", *needed.get(kind, ())) if row.get(key) is None]
        if missing:
            raise InputError(f"a row of {METRICS} lacks {', '.join(missing)}: {row}")
        with open(self.workdir / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if kind in needed:
            self._to_board(kind, row)

    def _to_board(self, kind: str, row: Mapping[str, Any]) -> None:
        step = row["step" if kind == "pretrain" else "round"]
        # One TensorBoard run per model draws the models into one chart per metric.
        name = f"evaluation-{quote(row['model'], safe=' ')}" if kind == "evaluation" else kind
        prefix = "" if kind == "evaluation" else f"{kind}/"
        scalars = {key: value for key, value in row.items()
                   if key not in ("step", "round", "epoch") and not isinstance(value, bool)
                   and isinstance(value, (int, float))}
        if name not in self._boards and scalars:
            self._boards[name] = SummaryWriter(
                str(self.workdir / TENSORBOARD / name), purge_step=self._purge.get(kind),
                filename_suffix=f".{os.getpid()}.{id(self)}")
        for key, value in scalars.items():
            self._boards[name].add_scalar(prefix + key, value, step)

    def truncate_after(self, round: int, pretrain_epoch: int | None = None) -> int:
        """Drops the rows that a resumed run will write again.

        Args:
          round: the restored round (0 = before the first); "round" and
            "evaluation" rows beyond it go. -1 drops all of them.
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

        kept = [row for row in rows if stays(row)]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        _replace(path, lambda file: file.write(text.encode()))
        steps = [row["step"] for row in kept if row.get("kind") == "pretrain"]
        self._purge = {"pretrain": max(steps, default=-1) + 1,
                       "round": round + 1, "evaluation": round + 1}
        return len(rows) - len(kept)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``."""
        write_json(self.workdir / SUMMARY, summary)

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


def _name(*parts: str) -> str:
    return "/".join(quote(str(part), safe=" :@.,()=") for part in parts)


def write_evaluation(
    workdir: str | os.PathLike, *, rocs: Mapping[str, Mapping[str, tuple]],
    per_client: Mapping[str, Mapping[str, np.ndarray]],
    faces: np.ndarray | None = None, hard_negatives: Sequence[Mapping] = (),
    mistakes: Sequence[Mapping] = (),
) -> None:
    """Writes ``evaluation.npz``: the arrays from which the report can be drawn again.

    Args:
      workdir: the run's directory.
      rocs: protocol -> model -> (far (n,), tar (n,)).
      per_client: metric -> model -> (C,) values.
      faces: (rows, cols, S, S, 3) uint8 or None.
      hard_negatives: dicts of client, local_image, public_image (S, S, 3) uint8, cosine.
      mistakes: dicts of kind, model, client, image_a, image_b (S, S, 3) uint8, score, threshold.

    Raises:
      InputError: a value is not an array of numbers or text.
    """
    arrays: dict[str, np.ndarray] = {}
    for protocol, curves in rocs.items():
        for model, (far, tar) in curves.items():
            arrays[_name("roc", protocol, model, "far")] = np.asarray(far)
            arrays[_name("roc", protocol, model, "tar")] = np.asarray(tar)
    for metric, models in per_client.items():
        for model, values in models.items():
            arrays[_name("per_client", metric, model)] = np.asarray(values)
    if faces is not None:
        arrays["faces"] = np.asarray(faces)
    for part, examples in (("hard_negatives", hard_negatives), ("mistakes", mistakes)):
        for number, example in enumerate(examples):
            for key, value in example.items():
                arrays[_name(part, f"{number:06d}", key)] = np.asarray(value)
    for name, array in arrays.items():
        if array.dtype.kind not in "biufU":
            raise InputError(f"{name} of {EVALUATION} is not an array of numbers or text")
    _replace(pathlib.Path(workdir) / EVALUATION,
             lambda file: np.savez_compressed(file, **arrays))


def read_evaluation(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads ``evaluation.npz`` back: the keyword arguments of :func:`write_evaluation`.

    Raises:
      InputError: the file is missing or corrupt.
    """
    path = pathlib.Path(workdir) / EVALUATION
    if not path.exists():
        raise InputError(f"{path} does not exist: the run in {path.parent} was not evaluated")
    result: dict[str, Any] = {"rocs": {}, "per_client": {}, "faces": None}
    examples: dict[str, dict[str, dict]] = {"hard_negatives": {}, "mistakes": {}}
    try:
        for name, array in load_arrays(path).items():
            part, *keys = (unquote(item) for item in name.split("/"))
            if part == "faces":
                result["faces"] = array
            elif part == "roc":
                result["rocs"].setdefault(keys[0], {}).setdefault(keys[1], {})[keys[2]] = array
            elif part == "per_client":
                result["per_client"].setdefault(keys[0], {})[keys[1]] = array
            else:
                value = array if keys[1] in _IMAGE_KEYS[part] else array.item()
                examples[part].setdefault(keys[0], {})[keys[1]] = value
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate the run again") from error
    result["rocs"] = {protocol: {model: (curve["far"], curve["tar"])
                                 for model, curve in curves.items()}
                      for protocol, curves in result["rocs"].items()}
    return result | {part: list(found.values()) for part, found in examples.items()}
