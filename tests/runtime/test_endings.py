"""How commands end: signals, full disks, several processes that do not fit."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small import ROOT

from fedfr_jax.ablation import cells
from fedfr_jax.atomic import write_file, write_text
from fedfr_jax.config import resolve
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.runtime import endings, interrupts, memory, processes
from fedfr_jax.runtime.lock import WorkdirLock
from fedfr_jax.runtime.workdir import make_folder


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    write_text(path, "ä\n")

    def broken(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_file(path, broken)
    assert path.read_bytes() == "ä\n".encode() and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "the disk is full: /a/b"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "permission denied: /a"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "the file system is read-only: /a"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: writing '/a': No space left on device [x.cc]"),
            "No space left on device",
        ),
    ],
)
def test_what_the_disk_refuses_is_one_line(error, line, tmp_path, capsys):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(SystemExit) as exit, endings.reports_input_errors(tmp_path):
        try:
            raise error
        except Exception as first:
            raise RuntimeError("saving failed") from first
    assert exit.value.code == 2
    [text] = capsys.readouterr().err.strip().splitlines()
    assert text.startswith("error: ") and line in text
    assert f"The state after round 3 is saved in {tmp_path}; the same command with --resume" in text


def test_a_lost_process_is_named_where_its_lock_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("os._exit", sys.exit)  # which the test survives
    own = tmp_path / "processes" / "2"
    own.mkdir(parents=True)
    (own / "lock").write_text('{"pid": 77, "host": "there"}')
    lost = RuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer\nmore")
    with WorkdirLock(tmp_path), pytest.raises(SystemExit), endings.reports_input_errors(tmp_path):
        raise lost
    [text] = capsys.readouterr().err.strip().splitlines()[:1]
    assert text.startswith("error: process 2 of 3 (pid 77 on there) has ended (UNKNOWN: Gloo")
    (own / "lock").write_text("")  # it gave the folder free
    with pytest.raises(SystemExit), endings.reports_input_errors(None):
        raise lost
    assert "another process of this run has ended" in capsys.readouterr().err


def test_errors_of_the_program_itself_pass(tmp_path):
    with pytest.raises(KeyError), endings.reports_input_errors(tmp_path):
        raise KeyError("x")


def test_what_is_safe(tmp_path):
    assert "Nothing was computed" in endings.what_is_safe(tmp_path / "nowhere")
    (tmp_path / "pretrained" / "backbone").mkdir(parents=True)
    assert "The pretrained model is saved" in endings.what_is_safe(tmp_path)
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    for r in (9, 10):
        (tmp_path / "checkpoints" / str(r)).mkdir()
    assert "after round 10" in endings.what_is_safe(tmp_path)
    (tmp_path / "cells").mkdir()
    assert "Finished cells are kept" in endings.what_is_safe(tmp_path)


@pytest.fixture
def handlers():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    interrupts.install()
    yield
    interrupts.release(stop=False)
    for number, old in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, old)


def test_a_signal_waits_for_unsaved_work_once(handlers, capsys):
    with pytest.raises(interrupts.Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert stopped.value.signal == signal.SIGTERM
    interrupts.hold()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
    assert interrupts.pending() and "finished and saved" in capsys.readouterr().err
    with pytest.raises(interrupts.Stopped, match="SIGINT"):
        interrupts.release()
    assert not interrupts.pending()
    interrupts.hold()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    with pytest.raises(interrupts.Stopped):  # the second one does not wait
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


RUN = """
import sys; sys.path[:0] = ["tests", "tests/runtime"]
import conftest, quick, os, signal
from fedfr_jax.experiment import train
from fedfr_jax.runtime import course, interrupts
from fedfr_jax.runtime.endings import reports_input_errors
real = course.round_row
def round_row(sim, done, *rest):
    if done == {after}:
        os.kill(os.getpid(), signal.{name})
    return real(sim, done, *rest)
course.round_row = round_row
interrupts.install()
with reports_input_errors({folder!r}):
    train(quick.quick(checkpoint={{"every": 10}}, fed={{"rounds": 6}}), {folder!r})
"""


@pytest.mark.parametrize(
    "name, code", [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_what_is_finished(name, code, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", RUN.format(after=2, name=name, folder=str(tmp_path))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr[-2000:]
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"stopped by {name}. The state after round 3 is saved in {tmp_path}")
    assert "Traceback" not in ended.stderr


def test_processes_that_differ_are_told_what_in():
    def gather(*others):
        return lambda mine: np.stack(
            [mine, *[processes.digests(o) if mine.ndim else np.int32(len(o)) for o in others]]
        )

    mine = {"fed.lr": 0.1, "seed": 0, "jax": "1"}
    processes.check_equal(mine, gather=gather(mine, dict(mine)))
    with pytest.raises(InputError, match=r"differ in fed\.lr \(here 0\.1\); start all"):
        processes.check_equal(mine, gather=gather(mine, mine | {"fed.lr": 0.2}))
    with pytest.raises(InputError, match="versions of the program: they have 3, 2 settings"):
        processes.check_equal(mine, gather=gather({"seed": 0, "jax": "1"}))


def test_a_grid_goes_on_where_an_error_cannot_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cells, "write_text", full)
    try:
        raise ValueError("wrong")
    except ValueError:
        said = cells._keep_error(tmp_path / "cell")
    assert "error.txt cannot be written" in said and "No space left" in said
    monkeypatch.undo()
    try:
        raise ValueError("wrong")
    except ValueError:
        assert cells._keep_error(tmp_path / "cell") == ""
    assert "ValueError: wrong" in (tmp_path / "cell" / "error.txt").read_text()


def test_what_cannot_fit_is_refused_before_it_is_taken(monkeypatch):
    memory.check_fits({"a": 3.0, "b": 4.0}, free=7.0)
    with pytest.raises(ConfigError, match=r"^b: 4\.0 GiB .* 7\.0 GiB together, but 6\.0 GiB"):
        memory.check_fits({"a": 3.0 * 2**30, "b": 4.0 * 2**30}, free=6.0 * 2**30)
    assert memory.available() > 0
    monkeypatch.setattr(memory, "available", lambda: 2.0**30)
    for group, name, value in (
        ("fed", "num_clients", 10**9),
        ("fed", "rounds", 10**9),
        ("data", "generated", {"identities": 10**9}),
    ):
        with pytest.raises(ConfigError, match=f"{group}.{name}.*GiB.* are free; lower it"):
            memory.check_plan(resolve({group: {name: value}}))


def test_the_home_directory_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = resolve(
        {
            "data": {"root": "~/x", "source": "folder"},
            "model": {"weights": "~/w"},
            "population": {"availability": "~/a.npy"},
        }
    )
    assert (config.data.root, config.model.weights, config.population.availability) == tuple(
        str(tmp_path / name) for name in ("x", "w", "a.npy")
    )
    assert make_folder("~/runs/x") == tmp_path / "runs" / "x"
