"""Rows divided anew among another number of processes: the same bits, whatever happens."""

import shutil

import jax
import numpy as np
import pytest

from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.population import division
from fedfr_jax.population.records import HEADER
from fedfr_jax.population.store import RowStore

CLIENTS = 11
EXAMPLE = {"w": jax.ShapeDtypeStruct((40,), np.float32), "n": np.int32(0)}
KEEP = 2


def stores_in(folder, processes, read_only=True):
    return [
        RowStore(EXAMPLE, CLIENTS, division.store_file(folder, p, processes), read_only=read_only)
        for p in range(processes)
    ]


def train(folder, processes, rounds, seed=0):
    """Rounds as processes would run them: each writes, commits and retains its clients' rows."""
    folder.mkdir(exist_ok=True)
    stores = stores_in(folder, processes, read_only=False)
    for r in rounds:
        rng = np.random.default_rng((seed, r))
        cohort = np.sort(rng.permutation(CLIENTS)[:5])
        values = rng.standard_normal((CLIENTS, 40)).astype(np.float32)
        for process, store in enumerate(stores):
            mine = cohort[cohort % processes == process]
            store.write(mine, {"w": values[mine], "n": np.full(len(mine), r, np.int32)}, r)
            store.commit(r)
            store.retain(range(max(r - KEEP + 1, 1), r + 1))
    for store in stores:
        store.close()


def rows_after(folder, round):
    """All clients' rows after a round, as whoever reads the run finds them."""
    processes = division.processes_of(folder)
    stores = stores_in(folder, processes)
    known, rows = np.zeros(CLIENTS, bool), []
    for store in stores:
        store.rewind(round)
    for client in range(CLIENTS):
        store = stores[client % processes]
        known[client] = store.known(np.array([client]))[0]
        rows.append(store.read(np.array([client])))
        assert not any(s.known(np.array([client]))[0] for s in stores if s is not store), (
            "a row is in two stores"
        )
    kept = [store.kept for store in stores]
    for store in stores:
        store.close()
    return known, jax.tree.map(lambda *x: np.concatenate(x), *rows), kept[0]


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def divide(folder, processes, **options):
    division.divide_anew(EXAMPLE, CLIENTS, folder, processes, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 2), (4, 1), (3, 5)])
def test_rows_of_all_kept_rounds_are_the_same_bits(before, after, tmp_path):
    folder = tmp_path / "heads"
    train(folder, before, range(1, 7))
    whole = {r: rows_after(folder, r) for r in (5, 6)}
    assert whole[5][0].any() and not same(whole[5][:2], whole[6][:2])
    divide(folder, after, rounds=[5, 6])
    assert division.processes_of(folder) == after
    assert len(list(folder.glob("*.rows"))) == after  # nothing is left of the others
    for r, expected in whole.items():
        assert same(rows_after(folder, r), expected)
    there = files(folder)
    divide(folder, before, rounds=[5, 6])
    for r, expected in whole.items():
        assert same(rows_after(folder, r), expected)
    divide(folder, after, rounds=[5, 6])
    assert files(folder) == there  # byte for byte


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    train(tmp_path / "one", 1, range(1, 10))
    train(tmp_path / "changing", 2, range(1, 4))
    for processes, rounds in ((4, range(4, 6)), (3, range(6, 7)), (1, range(7, 9)), (2, [9])):
        divide(tmp_path / "changing", processes)
        train(tmp_path / "changing", processes, rounds)
    for r in (8, 9):
        assert same(rows_after(tmp_path / "changing", r), rows_after(tmp_path / "one", r))


def test_unfinished_rounds_are_left_out_and_unequal_commits_agree(tmp_path):
    folder = tmp_path / "heads"
    train(folder, 2, range(1, 5))
    whole = rows_after(folder, 4)
    first, second = stores_in(folder, 2, read_only=False)
    with first, second:  # killed when one process had committed round 5 and the other had not
        first.write(
            np.array([0, 2]), jax.tree.map(lambda x: np.zeros((2, *x.shape), x.dtype), EXAMPLE), 5
        )
        first.commit(5)
    divide(folder, 3, rounds=[3, 4])
    assert same(rows_after(folder, 4), whole)
    for store in stores_in(folder, 3):
        assert store.rounds == [3, 4]
        store.close()


class Kill(Exception):
    pass


def steps_until_killed(monkeypatch, number):
    """Raises Kill before the ``number``-th operation on a file, or between two rows."""
    count = [0]

    def step(*_):
        count[0] += 1
        if count[0] == number:
            raise Kill

    def before(real):
        def call(*arguments, **keywords):
            step()
            return real(*arguments, **keywords)

        return call

    for where, name in (
        (division, "write_text"),
        (division, "write_journal"),
        (division.Records, "grow"),
        (division.Records, "flush"),
        (division.pathlib.Path, "unlink"),
    ):
        monkeypatch.setattr(where, name, before(getattr(where, name)))
    return step


def test_a_kill_at_any_step_loses_nothing(tmp_path, monkeypatch):
    before, after = 2, 3
    original, folder = tmp_path / "original", tmp_path / "heads"
    train(original, before, range(1, 5))
    whole = {r: rows_after(original, r) for r in (3, 4)}
    kills, seen = 0, set()
    while True:
        shutil.copytree(original, folder)
        with monkeypatch.context() as patch:
            tick = steps_until_killed(patch, kills + 1)
            try:
                divide(folder, after, rounds=[3, 4], tick=tick)
            except Kill:
                kills += 1
            else:
                break
        seen.add(division.processes_of(folder))
        for goes_on_with in (before, after):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            assert all(same(rows_after(copy, r), whole[r]) for r in whole)
            if division.processes_of(copy) == goes_on_with:
                division.remove_others(copy, goes_on_with)
            else:
                divide(copy, goes_on_with, rounds=[3, 4])
            assert all(same(rows_after(copy, r), whole[r]) for r in whole)
            assert len(list(copy.glob("*.json"))) <= goes_on_with + 1
            shutil.rmtree(copy)
        shutil.rmtree(folder)
    assert seen == {before, after} and kills > 15


def test_each_process_writes_its_own(tmp_path):
    """The steps in lockstep, as processes run them, give what one process gives."""
    train(tmp_path / "alone", 2, range(1, 4))
    shutil.copytree(tmp_path / "alone", tmp_path / "heads")
    divide(tmp_path / "alone", 3)
    steps = [[] for process in range(3)]
    for process, mine in enumerate(steps):
        divide(
            tmp_path / "heads",
            3,
            parts=[process],
            first=process == 0,
            together=mine.append,
        )
    for step in zip(*steps, strict=True):
        for work in reversed(step):
            work()
    assert files(tmp_path / "heads") == files(tmp_path / "alone")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["row", "header"])
def test_what_is_damaged_stays_damaged_and_the_round_before_whole(what, tmp_path):
    folder = tmp_path / "heads"
    train(folder, 2, range(1, 6))
    path = division.store_file(folder, 1, 2)
    table = np.frombuffer(path.with_suffix(".table").read_bytes(), HEADER)
    newest = int(np.flatnonzero((table["round"] == 5) & (table["client"] > 0))[0])
    if what == "row":
        flip(path, newest * (path.stat().st_size // len(table)) + 3)
    else:
        flip(path.with_suffix(".table"), newest * HEADER.itemsize + 16)
    before = rows_after(folder, 4)
    divide(folder, 3, rounds=[4, 5])
    with pytest.raises(DamagedError, match="damaged"):
        for store in stores_in(folder, 3):
            with store:
                store.check(5)
    assert same(rows_after(folder, 4), before)


def test_what_does_not_belong_together_is_refused_untouched(tmp_path):
    folder = tmp_path / "heads"
    train(folder, 2, range(1, 4))
    journal = division.store_file(folder, 1, 2).with_suffix(".json")
    for damage, error, rounds in (
        (lambda: None, "not hold the clients' state of round 9", [9]),
        (lambda: flip(journal, 30), "journal of the clients' rows is damaged", [3]),
        (journal.unlink, "process-1-of-2.json is missing; the rows are divided among 2", [3]),
    ):
        damage()
        there = files(folder)
        with pytest.raises(InputError, match=error):
            divide(folder, 3, rounds=rounds)
        assert files(folder) == there
    (folder / division.NAME).write_text('{"processes": 3, "check": 1}')
    with pytest.raises(DamagedError, match=r"division.json is damaged"):
        division.processes_of(folder)


def test_a_run_that_saved_nothing_is_divided_as_well(tmp_path):
    folder = tmp_path / "heads"
    train(folder, 2, [])
    for path in folder.glob("process-1-of-2.*"):
        path.unlink()  # killed before the second process had begun
    divide(folder, 3)
    assert division.processes_of(folder) == 3
    for store in stores_in(folder, 3):
        with store:
            assert store.rounds == [] and not len(store.touched())
