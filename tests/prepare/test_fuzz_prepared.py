"""Damaged prepared folders: a result or InputError, never another error."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fedfr_jax.data.folder import open_folder
from fedfr_jax.data.prepared import open_prepared
from fedfr_jax.errors import InputError
from fedfr_jax.prepare.prepare import prepare


@pytest.mark.parametrize("verified", [True, False])
def test_any_file_may_be_damaged(tmp_path, verified, monkeypatch):
    rng = np.random.default_rng(0)
    for person in ("a", "b"):
        (tmp_path / "in" / person).mkdir(parents=True)
        for k in range(3):
            image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            image.save(tmp_path / "in" / person / f"{k}.png")
    prepare(open_folder(tmp_path / "in", 8), tmp_path / "out", shard_images=4)
    if not verified:  # as for someone who can make checksums
        monkeypatch.setattr("fedfr_jax.data.prepared.verify", lambda folder, file: None)
    files = sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != "lock")
    refused = 0
    for trial in range(120):
        out = tmp_path / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "out", out)
        path = out / files[trial % len(files)]
        data = bytearray(path.read_bytes())
        if trial % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        else:
            for at in rng.integers(0, len(data), 1 + trial % 4):
                data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            source = open_prepared(out, 8)
            source.check(np.arange(len(source.labels)))
            source.read(np.arange(len(source.labels)))
            source.name_of(0)
        except InputError:
            refused += 1
    assert refused > 40
