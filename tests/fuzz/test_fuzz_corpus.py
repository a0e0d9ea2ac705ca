"""Every kept file of the fuzzer is read right or refused, in bounded time and memory."""

import pathlib
import time

import pytest
from fuzz_files import CORPUS
from fuzz_targets import TARGETS

from fedfr_jax.errors import InputError
from fedfr_jax.runtime.process_memory import peak_bytes

MOST_SECONDS, MOST_GROWTH = 5, 500 * 2**20  # of CPU time for a file, and for all of a target


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_kept_file_is_read_or_refused(name, tmp_path):
    files = sorted((CORPUS / name).iterdir())
    assert any(path.name.startswith("seed-") for path in files)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    for i, path in enumerate(files):
        folder = tmp_path / str(i)
        folder.mkdir()
        started = time.process_time()
        try:
            TARGETS[name].read(path.read_bytes(), folder)
        except InputError as error:
            assert not path.name.startswith("seed-"), error
            assert str(error)
        assert time.process_time() - started < MOST_SECONDS, path
    assert peak_bytes() - before < MOST_GROWTH


def test_the_corpus_is_small_and_has_no_other_folders():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
