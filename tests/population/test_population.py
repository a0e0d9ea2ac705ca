"""Rows of a population at rest: round trips, going back to a checkpoint, kills, bad files."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small import ROOT

from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.population import records
from fedfr_jax.population.store import RowStore

EXAMPLE = {"w": jax.ShapeDtypeStruct((3,), np.float32), "n": np.int32(0)}


def rows_of(clients, round, example=EXAMPLE):
    """A row that tells whose (id < 1000) and of which round it is."""
    clients = np.asarray(clients)

    def fill(leaf):
        value = (1000 * round + clients).reshape(-1, *[1] * len(leaf.shape))
        return np.broadcast_to(value, (len(clients), *leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(fill, example)


def put(store, clients, round):
    store.write(np.array(clients), rows_of(clients, round), round)


def state(store):
    """{client: round of its row}, after checking that rows are whole."""
    clients = store.touched()
    assert store.known(clients).all()
    rows = store.read(clients)
    rounds = rows["n"] // 1000
    chex.assert_trees_all_equal(rows, rows_of(clients, rounds))
    return dict(zip(clients.tolist(), rounds.tolist(), strict=True))


@pytest.fixture(params=["file", "memory"])
def path(request, tmp_path):
    return tmp_path / "a.rows" if request.param == "file" else None


def test_rows_of_all_kinds_come_back(path):
    rng = np.random.default_rng(0)
    kinds = {
        "f": (np.float32, (2, 3)),
        "b": (bool, (5,)),
        "h": (ml_dtypes.bfloat16, (3,)),
        "scalar": (np.int8, ()),
        "wide": (np.float64, (1, 1)),
        "none": (np.float32, (0, 4)),
        "u": (np.uint64, ()),
        "c": (np.complex64, (2,)),
        "byte": (ml_dtypes.float8_e4m3fn, (7,)),
    }

    def array(lead, kind, shape):
        return np.asarray(rng.integers(0, 2, (*lead, *shape))).astype(kind)

    example = {"a": [array((), *kinds[name]) for name in kinds], "b": (None, array((), bool, ()))}
    rows = {"a": [array((4,), *kinds[name]) for name in kinds], "b": (None, array((4,), bool, ()))}
    rows["a"][2] = jnp.asarray(rows["a"][2])  # from a device
    rows["a"][0] = np.asfortranarray(rows["a"][0])
    with RowStore(example, 10, path) as store:
        store.write(np.array([7, -1, 0, 9]), rows, 1)
        found = store.read(np.array([9, 5, -1, 0, 7, 7], np.int32))
        assert jax.tree.structure(found) == jax.tree.structure(rows)
        for before, after in zip(jax.tree.leaves(rows), jax.tree.leaves(found), strict=True):
            assert isinstance(after, np.ndarray)
            assert after.dtype == before.dtype
            expected = np.asarray(before)[[3, 0, 0, 2, 0, 0]]
            expected[1:3] = 0
            np.testing.assert_array_equal(after, expected)
        assert store.known(np.array([9, 5, -1, 0, 7])).tolist() == [True, False, False, True, True]
        assert store.touched().tolist() == [0, 7, 9]
        assert store.read(np.zeros(0, np.int64))["a"][0].shape == (0, 2, 3)
        store.write(np.array([-1]), jax.tree.map(lambda leaf: leaf[:1], rows), 1)


def test_a_file_keeps_what_was_written(tmp_path):
    with RowStore(EXAMPLE, 10, tmp_path / "a.rows") as store:
        put(store, [3, 8], 1)
        store.commit(1)
        put(store, [3, 0], 2)
    with RowStore(EXAMPLE, 10, tmp_path / "a.rows") as store:
        assert state(store) == {0: 2, 3: 2, 8: 1}
    assert {file.name for file in tmp_path.iterdir()} == {"a.rows", "a.table", "a.json"}


def test_rewind_goes_back_to_any_round_that_is_kept(path):
    store = RowStore(EXAMPLE, 10, path)
    put(store, [1, 2], 1)
    store.rewind(0)  # killed before the first checkpoint
    assert state(store) == {}
    put(store, [1, 2, 3], 1)
    store.commit(1)
    for r in (2, 3, 4):  # several writes between commits
        put(store, [2, 4, r + 3], r)
    assert state(store) == {1: 1, 2: 4, 3: 1, 4: 4, 5: 2, 6: 3, 7: 4}
    store.rewind(1)
    assert state(store) == {1: 1, 2: 1, 3: 1}
    put(store, [2, 9], 2)
    store.commit(2)
    put(store, [2, 1], 3)
    store.rewind(2)
    assert state(store) == {1: 1, 2: 2, 3: 1, 9: 2}
    put(store, [2], 4)
    store.commit(4)
    put(store, [2], 5)
    assert store.rounds == [1, 2, 4]
    store.rewind(1)
    assert state(store) == {1: 1, 2: 1, 3: 1} and store.rounds == [1]


def test_what_no_kept_round_needs_is_used_again(tmp_path):
    store = RowStore(EXAMPLE, 4, tmp_path / "a.rows")
    for r in range(1, 30):
        put(store, [0, 1, 2, 3], r)
        store.commit(r)
        store.retain([r - 1, r])
        assert store.rounds == [r - 1, r][r == 1 :]
    assert store._records.used <= 12
    store.rewind(28)
    assert state(store) == dict.fromkeys(range(4), 28)


def test_a_reader_changes_no_file(tmp_path):
    path = tmp_path / "a.rows"
    with RowStore(EXAMPLE, 10, path) as store:
        for r in (1, 2):
            put(store, [1, 2 + r], r)
            store.commit(r)
        put(store, [9], 3)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for r, expected in ((1, {1: 1, 3: 1}), (2, {1: 2, 3: 1, 4: 2})):
        with RowStore(EXAMPLE, 10, path, read_only=True) as store:
            store.rewind(r)
            assert state(store) == expected
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="missing"):
        RowStore(EXAMPLE, 10, tmp_path / "b.rows", read_only=True)


def test_any_history_goes_back_to_each_kept_checkpoint(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "a.rows"
    store, now, saved, r = RowStore(EXAMPLE, 12, path), {}, {0: {}}, 0
    for _ in range(400):
        r += 1
        clients = rng.permutation(12)[: rng.integers(0, 5)]
        put(store, clients, r)
        now |= dict.fromkeys(clients.tolist(), r)
        action = rng.integers(4)
        if action == 0:
            store.commit(r)
            if rng.integers(3):  # else killed before the checkpoint
                saved[r] = dict(now)
                saved = dict(sorted(saved.items())[-3:])
                if rng.integers(2):  # else killed before the rest is given free
                    store.retain(saved)
                    continue
        if action < 2 and any(saved):
            if rng.integers(2):
                store.close()
                store = RowStore(EXAMPLE, 12, path)
            r = int(rng.choice([c for c in saved if c]))
            store.rewind(r)
            now, saved = dict(saved[r]), {c: v for c, v in saved.items() if c <= r}
        assert state(store) == now
    assert store._records.used <= 12 * 6  # what a kill left is given free later


@pytest.mark.parametrize("puts", range(4))
def test_a_write_that_stops_midway_leaves_the_checkpoint(tmp_path, monkeypatch, puts):
    store = RowStore(EXAMPLE, 10, tmp_path / "a.rows")
    put(store, [0, 1], 1)
    store.commit(1)
    put(store, [1, 2], 2)
    done = []

    def broken(self, record, parts):
        self._records.rows[record, :40] = 77
        done.append(record)
        if len(done) > puts:
            raise KeyboardInterrupt
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "_put", broken)
        with pytest.raises(KeyboardInterrupt):
            put(store, [0, 1, 2, 5], 3)
    assert state(store) == {0: 1, 1: 1}  # the same process goes on
    store = RowStore(EXAMPLE, 10, tmp_path / "a.rows")
    store.rewind(1)
    assert state(store) == {0: 1, 1: 1}
    put(store, [0, 1, 2, 5], 2)
    assert state(store) == {0: 2, 1: 2, 2: 2, 5: 2}
    assert store._records.used == 6  # abandoned records are used again


KILLED = textwrap.dedent("""
    import os, pathlib, sys
    import numpy as np
    from fedfr_jax.population.store import RowStore
    folder = pathlib.Path(sys.argv[1])
    def cohort(r):
        return np.random.default_rng(r).permutation(40)[:8]
    note = folder / "checkpoint"
    start = int(note.read_text()) if note.exists() else 0
    store = RowStore({"w": np.zeros((1 << 16,), np.int32)}, 40, folder / "a.rows")
    store.rewind(start)
    print("ready", flush=True)
    for r in range(start + 1, 10**9):
        clients = cohort(r)
        rows = np.broadcast_to((1000 * r + clients)[:, None], (8, 1 << 16)).astype(np.int32)
        store.write(clients, {"w": rows}, r)
        if r % 3 == 0:
            partial = folder / "partial"
            partial.write_text(str(r))
            store.commit(r)
            os.replace(partial, note)
            store.retain([r])
""")


def test_kill_in_the_middle_of_writing(tmp_path):
    def reached():
        path = tmp_path / "checkpoint"
        return int(path.read_text() or 0) if path.exists() else 0

    last = 0
    for delay in (0.02, 0.11, 0.05):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert child.stdout.readline() == b"ready\n"
        while reached() < last + 2:  # however slow the machine is
            time.sleep(0.01)
        time.sleep(delay)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        checkpoint = int((tmp_path / "checkpoint").read_text())
        assert checkpoint >= last
        last = checkpoint
        with RowStore({"w": np.zeros((1 << 16,), np.int32)}, 40, tmp_path / "a.rows") as store:
            store.rewind(checkpoint)
            expected = {}
            for r in range(1, checkpoint + 1):
                clients = np.random.default_rng(r).permutation(40)[:8]
                expected |= {int(i): 1000 * r + int(i) for i in clients}
            clients = store.touched()
            assert clients.tolist() == sorted(expected)
            rows = store.read(clients)["w"]
            assert (rows == np.array([expected[i] for i in clients.tolist()])[:, None]).all()
    assert last > 3


def test_what_breaks_the_order_is_refused(tmp_path):
    store = RowStore(EXAMPLE, 10, tmp_path / "a.rows")
    put(store, [1], 1)
    put(store, [1, 2], 2)
    with pytest.raises(ValueError, match="too late"):
        store.commit(1)
    with pytest.raises(InputError, match="state of no round, not of round 1, the server's"):
        store.rewind(1)
    store.commit(2)
    for r in (1, 2, -1):
        with pytest.raises(ValueError, match="round 2 is committed"):
            put(store, [3], r)
    put(store, [3], 5)
    with pytest.raises(ValueError, match="earlier round"):
        put(store, [3], 4)
    for r in (1, 4):
        with pytest.raises(InputError, match=f"state of round 2, not of round {r}"):
            store.rewind(r)
    store.rewind(2)
    assert state(store) == {1: 2, 2: 2}
    store.retain([2])
    with pytest.raises(InputError, match="no checkpoint of the server is there"):
        store.rewind(0)


def test_bad_arguments():
    store = RowStore(EXAMPLE, 10, None)
    with pytest.raises(ValueError, match="repeats"):
        put(store, [4, 1, 4], 1)
    put(store, [-1, -1, 1], 1)
    for clients in ([10], [-2], [0.5], [[1]]):
        for method in (store.read, store.known):
            with pytest.raises(ValueError, match="clients: "):
                method(np.array(clients))
    with pytest.raises(ValueError, match=r"rows\['n'\]: int32\[2\]; must be int32\[1\]"):
        store.write(np.array([1]), rows_of([1, 2], 1), 1)
    with pytest.raises(ValueError, match="the store holds"):
        store.write(np.array([1]), rows_of([1], 1)["w"], 1)
    wrong = {**rows_of([1], 1), "n": np.ones(1, np.int64)}
    with pytest.raises(ValueError, match=r"rows\['n'\]: int64"):
        store.write(np.array([1]), wrong, 1)
    with pytest.raises(ValueError, match=r"example\['k'\]: .* cannot be stored"):
        RowStore({"k": jax.random.key(0)}, 10, None)
    with pytest.raises(ValueError, match="cannot be stored"):
        RowStore(np.array(None), 10, None)
    with pytest.raises(ValueError, match="population: 0"):
        RowStore(EXAMPLE, 0, None)
    assert state(store) == {1: 1}


def test_the_file_grows(path, monkeypatch):
    monkeypatch.setattr(records, "_FIRST_STEP", 300)
    store = RowStore(EXAMPLE, 500, path)
    sizes, rng, now = [], np.random.default_rng(2), {}
    for r in range(1, 40):
        clients = rng.permutation(500)[:30]
        put(store, clients, r)
        now |= dict.fromkeys(clients.tolist(), r)
        if r % 5 == 0:
            store.commit(r)
            store.retain([r])
        sizes.append(len(store._records.rows))
        assert state(store) == now
    assert len(set(sizes)) > 3
    assert max(sizes) <= 1000


def test_a_million_clients_cost_little(path):
    example = {"w": jax.ShapeDtypeStruct((1 << 18,), np.float32)}  # 1 MiB a row, 2 TiB for all
    store = RowStore(example, 1_000_000, path)
    assert store.nbytes < 100_000
    clients = np.array([5, 999_999, 123_456])
    store.write(clients, {"w": np.ones((3, 1 << 18), np.float32)}, 1)
    assert 3 << 20 <= store.nbytes < (3 << 20) + 200_000
    if path:
        assert (
            sum(os.stat(path.with_suffix(s)).st_blocks * 512 for s in (".rows", ".table"))
            == store.nbytes
        )
        store = RowStore(example, 1_000_000, path)
    assert store.touched().tolist() == [5, 123_456, 999_999]
    assert store.read(np.array([123_456, 7]))["w"].sum() == 1 << 18


def test_other_rows_are_refused(tmp_path):
    path = tmp_path / "a.rows"
    RowStore(EXAMPLE, 10, path).close()
    before = path.with_suffix(".json").read_bytes()
    cases = [
        (
            {**EXAMPLE, "w": np.zeros(4, np.float32)},
            10,
            r"row\['w'\] is float32\[3\] in the file, float32\[4\] here",
        ),
        ({**EXAMPLE, "n": np.int64(0)}, 10, r"row\['n'\] is int32\[\] in the file, int64\[\] here"),
        ({**EXAMPLE, "x": np.int64(0)}, 10, r"row\['x'\] is absent in the file"),
        ({"n": EXAMPLE["n"]}, 10, r"row\['w'\] is float32\[3\] in the file, absent here"),
        (EXAMPLE, 11, "of 10 clients, not of 11"),
    ]
    for example, clients, message in cases:
        with pytest.raises(InputError, match=f"a.json: .*{message}"):
            RowStore(example, clients, path)
    assert path.with_suffix(".json").read_bytes() == before
    RowStore({"w": np.ones(3, np.float32), "n": jnp.int32(2)}, 10, path).close()


@pytest.fixture
def two_rounds(tmp_path):
    """Files of a store with rounds 1 and 2 committed; client 1 was written in both."""
    path = tmp_path / "a.rows"
    with RowStore(EXAMPLE, 10, path) as store:
        for r in (1, 2):
            put(store, [1, 2 + r], r)
            store.commit(r)
        used = store._records.used
    assert used == 4
    return path


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def usable(path):
    """The rounds to which one can go back, and whose rows then are right."""
    found = []
    for r in (2, 1):
        try:
            with RowStore(EXAMPLE, 10, path, read_only=True) as store:
                store.rewind(r)
                assert state(store) == ({1: 1, 3: 1}, {1: 2, 3: 1, 4: 2})[r - 1]
        except DamagedError:
            continue
        found.append(r)
    return found


@pytest.mark.parametrize("record, good", [(0, [2]), (1, []), (2, [1]), (3, [1])])
def test_a_flipped_bit_of_a_row_is_found(two_rounds, record, good):
    flip(two_rounds, 64 * 2 * record + 1)
    assert usable(two_rounds) == good


@pytest.mark.parametrize("byte", range(32))
def test_a_flipped_bit_of_a_header_is_found(two_rounds, byte):
    flip(two_rounds.with_suffix(".table"), 32 * 3 + byte)
    assert 2 not in usable(two_rounds)


@pytest.mark.parametrize("suffix", [".rows", ".table"])
@pytest.mark.parametrize("size", [0, 40, 100])
def test_a_truncated_file_is_found(two_rounds, suffix, size):
    path = two_rounds.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:size])
    assert 2 not in usable(two_rounds)


def test_lost_and_foreign_files_are_refused(two_rounds, tmp_path):
    journal = two_rounds.with_suffix(".json")
    whole = journal.read_bytes()
    for content in (
        b"",
        whole[:50],
        b"[" * 100_000,
        b"[]",
        b"{}",
        whole.replace(b'"clients": 3', b'"clients": 2'),
    ):
        journal.write_bytes(content)
        with pytest.raises(DamagedError, match=r"a\.json: the journal .* is damaged"):
            RowStore(EXAMPLE, 10, two_rounds)
    journal.write_bytes(whole.replace(b'"version": 2', b'"version": 3'))
    with pytest.raises(InputError, match="of version 3"):
        RowStore(EXAMPLE, 10, two_rounds)
    journal.unlink()
    with pytest.raises(InputError, match=r"a\.json is missing"):
        RowStore(EXAMPLE, 10, two_rounds)
    with pytest.raises(InputError, match="cannot be opened"):
        RowStore(EXAMPLE, 10, tmp_path / "absent" / "a.rows")
    for file in tmp_path.iterdir():
        file.unlink()
    with (
        RowStore(EXAMPLE, 10, two_rounds) as store,
        pytest.raises(InputError, match="state of no round, not of round 2"),
    ):
        store.rewind(2)


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    store = RowStore(EXAMPLE, 10, tmp_path / "a.rows")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"rows: no room for 2 more rows of .*No space"):
            put(store, [1, 2], 1)
    assert state(store) == {}
    put(store, [1, 2], 1)
    assert state(store) == {1: 1, 2: 1}


def test_a_second_thread_may_use_the_store(monkeypatch):
    monkeypatch.setattr(records, "_FIRST_STEP", 300)
    store, stop, errors = RowStore(EXAMPLE, 2000, None), threading.Event(), []

    def look():
        while not stop.is_set():
            try:
                state(store)
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=look)
    thread.start()
    for r in range(1, 60):
        put(store, np.arange(20 * r % 900, 20 * r % 900 + 30), r)
        store.commit(r)
    stop.set()
    thread.join()
    assert not errors
