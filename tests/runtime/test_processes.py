"""A run of several processes in the hands of one, and another number of them; see test_devices.

Heads divided among three processes are made from those of one: which processes wrote them does
not matter for whoever reads them.
"""

import json
import shutil
import threading

import jax
import numpy as np
import pytest
from quick import (  # noqa: F401
    SETTINGS,
    _simulation,
    cohort,
    compiled_once,
    quick,
    rounds_only,
    same,
    state,
)
from small import write_run

from fedfr_jax.convert.run_model import model_of_run
from fedfr_jax.errors import InputError, InUseError
from fedfr_jax.experiment import Experiment
from fedfr_jax.export.saved import open_saved
from fedfr_jax.population import division
from fedfr_jax.reporting.reevaluation import evaluate
from fedfr_jax.runtime import client_states, processes, workdir
from fedfr_jax.runtime.checkpoints import saved_rounds
from fedfr_jax.runtime.lock import WorkdirLock

pytestmark = pytest.mark.usefixtures("compiled_once")
CONFIG = {"checkpoint": {"keep": 2}}


def divide(folder, number, **options):
    sim = _simulation(quick(**CONFIG))
    division.divide_anew(
        client_states.row_shapes(sim),
        len(sim.schedule.clients),
        folder / "heads",
        number,
        rounds=saved_rounds(folder),
        **options,
    )


@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    """A folder with rounds 2 and 3 of four kept, heads divided among three; the same undivided."""
    folder = tmp_path_factory.mktemp("three") / "run"
    with Experiment(quick(**CONFIG), folder) as run:
        run.run(3)
    undivided = folder.with_name("undivided")
    shutil.copytree(folder, undivided)
    divide(folder, 3)
    return folder, undivided


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return rounds_only(tmp_path_factory.mktemp("whole"), **CONFIG)


def changes(folder):
    rows = workdir.read_metrics(folder)
    return [(r["round"], r["settings"]) for r in rows if r["kind"] == "change"]


def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_one_process_reads_what_three_wrote(of_three, tmp_path, blank_figures):
    folder, undivided = of_three
    client = int(cohort(quick(**CONFIG), 2)[0])
    for model in (lambda at: model_of_run(at, client), model_of_run):
        found, expected = (model(at) for at in (folder, undivided))
        assert same(found.variables, expected.variables) and found.rounds == expected.rounds == 3
    with open_saved(folder) as found, open_saved(undivided) as expected:
        assert found.round == expected.round == 3
    summaries = [evaluate(copied(at, tmp_path / at.name)) for at in (folder, undivided)]
    assert json.dumps(summaries[0]["models"]) == json.dumps(summaries[1]["models"])
    assert len(list((folder / "heads").glob("*.rows"))) == 3


def test_one_process_goes_on_where_three_were(of_three, whole, tmp_path):
    copy = copied(of_three[0], tmp_path)
    assert same(rounds_only(copy, resume=True, **CONFIG), whole)
    assert [p.name for p in (copy / "heads").glob("*.rows")] == ["process-0-of-1.rows"]
    assert changes(copy) == [(3, {"processes": [3, 1]})]
    with Experiment(quick(**CONFIG), copy, resume=True) as run:
        assert write_run(run)["run"]["changes"] == [{"round": 3, "settings": {"processes": [3, 1]}}]
    assert len(changes(copy)) == 1


class Kill(Exception):
    pass


@pytest.mark.parametrize("rows", [1, 4, 99])
def test_killed_while_the_heads_are_divided(rows, of_three, whole, tmp_path, monkeypatch):
    copy, left = copied(of_three[0], tmp_path), [rows]

    def tick(count):
        left[0] -= count
        if left[0] == 0:
            raise Kill

    def dies(*arguments, **keywords):
        real(*arguments, **keywords | {"tick": tick})
        raise Kill

    real = division.divide_anew
    with monkeypatch.context() as patch:
        patch.setattr(division, "divide_anew", dies)
        with pytest.raises(Kill):
            Experiment(quick(**CONFIG), copy, resume=True)
    assert division.processes_of(copy / "heads") == (1 if rows == 99 else 3)
    client = int(cohort(quick(**CONFIG), 2)[0])
    found, expected = (model_of_run(at, client) for at in (copy, of_three[1]))
    assert same(found.variables, expected.variables)
    assert same(rounds_only(copy, resume=True, **CONFIG), whole)
    assert changes(copy) == [(3, {"processes": [3, 1]})]


def test_back_to_the_old_number_after_a_kill_is_recorded(of_three, whole, tmp_path):
    copy = copied(of_three[1], tmp_path)  # of one process; three were about to take over
    with pytest.raises(Kill):
        divide(copy, 3, tick=kill)
    workdir.RunWriter(copy).append_change({"processes": (1, 3)})
    assert same(rounds_only(copy, resume=True, **CONFIG), whole)
    assert changes(copy) == [(3, {"processes": [1, 3]}), (3, {"processes": [3, 1]})]
    assert [p.name for p in (copy / "heads").glob("*.rows")] == ["process-0-of-1.rows"]


def kill(_):
    raise Kill


def test_a_damaged_checkpoint_falls_back_with_divided_heads(of_three, whole, tmp_path, caplog):
    copy = copied(of_three[0], tmp_path)
    for path in (copy / "checkpoints" / "3").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 16
            path.write_bytes(content)
    assert same(rounds_only(copy, resume=True, **CONFIG), whole)
    assert "going on from round 2" in caplog.text


def test_a_process_of_the_run_before_must_have_ended(of_three, tmp_path):
    copy = copied(of_three[0], tmp_path)
    own = workdir.make_folder(copy / "processes" / "2")
    with WorkdirLock(own), pytest.raises(InUseError, match=r"processes/2 is in use by process \d+"):
        Experiment(quick(**CONFIG), copy, resume=True)
    assert division.processes_of(copy / "heads") == 3 and not changes(copy)


def test_lost_heads_of_one_process_are_refused(of_three, tmp_path):
    copy = copied(of_three[0], tmp_path)
    (copy / "heads" / "process-1-of-3.json").unlink()
    for attempt in (lambda: rounds_only(copy, resume=True, **CONFIG), lambda: evaluate(copy)):
        with pytest.raises(InputError, match=r"process-1-of-3.json is missing.* 3 processes"):
            attempt()
    assert len(list((copy / "heads").glob("*.rows"))) == 3


@pytest.mark.parametrize("sizes", [(0, 1), (3, 1025, 70), (2500, 2500)])
def test_bytes_of_all_processes_are_gathered_in_pieces(sizes, monkeypatch):
    """Every process, here a thread, gives an array of the same shape in each exchange."""
    messages = [np.random.default_rng(n).bytes(n) for n in sizes]
    barrier, given, found = threading.Barrier(len(sizes), timeout=30), {}, {}

    def gather(array):
        given[int(threading.current_thread().name)] = np.array(array)
        barrier.wait()
        stacked = np.stack([given[process] for process in range(len(sizes))])
        assert stacked[0].size <= 1024
        barrier.wait()
        return stacked

    def run(process):
        found[process] = processes.gather_bytes(messages[process])

    monkeypatch.setattr(processes, "_PIECE", 1024)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    threads = [
        threading.Thread(target=run, args=(process,), name=str(process))
        for process in range(len(sizes))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(len(sizes)), messages)


def test_an_error_elsewhere_ends_the_work_here(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "worst", lambda code: max(code, 2))
    with pytest.raises(InputError, match="another process of this run has failed"):
        processes.together(lambda: None)
    with pytest.raises(InputError, match="here"):
        processes.together(lambda: (_ for _ in ()).throw(InputError("here")))
    monkeypatch.setattr(processes, "worst", lambda code: code)
    assert processes.together(lambda: 7) == 7


def test_the_head_of_another_process_is_not_guessed(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    client_states.check_own(4)
    with pytest.raises(InputError, match="head of client 3 is in process 1 of 2"):
        client_states.check_own(3)
