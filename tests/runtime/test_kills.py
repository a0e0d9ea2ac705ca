"""Kills at every file operation of a run, and damage to every file of a work directory.

A kill leaves the files as they are at that moment: they are copied before each operation on a
file of the work directory, and a run is taken up in every copy. (Real kills of processes are in
``test_train.py`` and ``test_population.py``.)
"""

import hashlib
import pathlib
import shutil
import sys
import threading

import pytest
from quick import SETTINGS, compiled_once, quick, rounds_only, same  # noqa: F401

from fedfr_jax.errors import InputError
from fedfr_jax.experiment import Experiment
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime import workdir

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]
_EVENTS = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "shutil.rmtree",
}
_watched: list = []  # an audit hook stays for good, so that there is one for all


def _audit(event, arguments):
    if _watched and event in _EVENTS:
        _watched[0](event, arguments)


sys.addaudithook(_audit)


class Moments:
    """Copies of a folder before every operation on a file in it, without repetitions."""

    def __init__(self, folder: pathlib.Path, target: pathlib.Path):
        self.folder, self.target = folder, target
        self.operations, self.copies = 0, []
        self._lock, self._busy, self._seen = threading.Lock(), threading.local(), set()

    def __call__(self, event, arguments):
        if getattr(self._busy, "now", False) or not str(arguments[0]).startswith(str(self.folder)):
            return
        if (event == "open" and arguments[1] in ("r", "rb")) or not self.folder.exists():
            return
        self.take()

    def take(self):
        with self._lock:
            self._busy.now = True
            try:
                self.operations += 1
                files = {}
                for path in self.folder.rglob("*"):
                    try:
                        if path.is_file():
                            files[path.relative_to(self.folder)] = path.read_bytes()
                    except FileNotFoundError:  # another thread has just moved it
                        continue
                digest = _digest(files)
                if digest not in self._seen:
                    self._seen.add(digest)
                    copy = self.target / f"{len(self.copies):04d}"
                    for name, content in files.items():
                        (copy / name).parent.mkdir(parents=True, exist_ok=True)
                        (copy / name).write_bytes(content)
                    self.copies.append(copy)
            finally:
                self._busy.now = False


def _digest(files):
    """What a copy is for a run that is taken up in it: what is unfinished has no content."""
    found = hashlib.sha256()
    for name, content in sorted(files.items()):
        if str(name).startswith(("tensorboard", "plots")):
            continue
        unfinished = "-tmp" in str(name) or name.suffix == ".partial"
        found.update(b"tmp" if unfinished else str(name).encode() + b"\0" + content)
    return found.hexdigest()


@pytest.mark.parametrize("cohort", [0, 3])
def test_a_kill_at_any_file_operation_changes_nothing(cohort, tmp_path, monkeypatch):
    config = quick(
        population={"cohort": cohort},
        fed={"rounds": 3},
        eval=SETTINGS["eval"] | {"every": 1, "clients": 1},
    )
    whole = rounds_only(tmp_path / "whole", config=config)
    moments = Moments(tmp_path / "run", tmp_path / "copies")
    real = RowStore._put

    def put(self, record, parts):
        moments.take()
        self._records.rows[record, :40] = 77  # half a row
        moments.take()
        return real(self, record, parts)

    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "_put", put)
        _watched[:] = [moments]
        try:
            rounds_only(tmp_path / "run", config=config)
        finally:
            _watched.clear()
    assert len(moments.copies) > 60
    for copy in moments.copies:
        assert same(rounds_only(copy, resume=True, config=config), whole), copy
        rows = [r["round"] for r in workdir.read_metrics(copy) if r["kind"] == "round"]
        assert rows == [1, 2, 3], copy
        shutil.rmtree(copy)
    print(
        f"kills: cohort {cohort or 'of all'}: {moments.operations} operations, "
        f"{len(moments.copies)} different moments, all taken up with the same result"
    )


def _used(path):
    return path.read_bytes().rstrip(b"\0") or b"\0"  # files of rows end in a hole


def _flip(path):
    content = bytearray(_used(path))
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": _flip,
    "cut in half": lambda p: p.write_bytes(_used(p)[: len(_used(p)) // 2]),
    "emptied": lambda p: p.write_bytes(b""),
    "deleted": lambda p: p.unlink(),
}
_OUTPUT = ("tensorboard", "plots", "report.html", "summary.json", "evaluation.npz", "lock")


@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damage_is_silent(kind, tmp_path, caplog):
    folder = tmp_path / "run"
    config = quick(fed={"rounds": 3})
    with Experiment(config, folder) as run:
        run.run()
    whole = rounds_only(folder, resume=True, config=config)
    outcomes: dict[str, list] = {"no harm": [], "error": [], "fallback": []}
    files = [
        p.relative_to(folder)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.stat().st_size and not str(p.relative_to(folder)).startswith(_OUTPUT)
    ]
    for name in files:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        DAMAGES[kind](copy / name)
        caplog.clear()
        try:
            found = rounds_only(copy, resume=True, config=config)
        except InputError as error:
            assert str(error)
            outcomes["error"].append(str(name))
            continue
        assert same(found, whole), f"{name}, {kind}: another result"
        rows = [r["round"] for r in workdir.read_metrics(copy) if r["kind"] == "round"]
        if rows != [1, 2, 3]:
            assert name.name == "metrics.jsonl", f"{name}, {kind}: rows {rows}"
        outcomes["fallback" if caplog.text else "no harm"].append(str(name))
    assert outcomes["error"] and (outcomes["fallback"] or kind == "emptied")
    for what, found in outcomes.items():
        print(what, *found, sep="\n    ")
    print(
        f"damage ({kind}): {len(files)} files: "
        + ", ".join(f"{len(found)} {what}" for what, found in outcomes.items())
    )
