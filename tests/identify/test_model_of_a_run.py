"""The commands with a model that a run has trained, opened as users do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from released import people, picture, save, write_ijb
from small import settings

from fedfr_jax.experiment import train
from fedfr_jax.identify.__main__ import command
from fedfr_jax.protocols.__main__ import command as protocols


@pytest.mark.slow
def test_commands_take_a_work_directory(tmp_path, blank_figures):
    train(settings(fed={"rounds": 1}, data={}), tmp_path / "run")
    rng = np.random.default_rng(0)
    for k, face in enumerate(people(rng, 3)):
        for folder in ("gallery", "probes"):
            save(tmp_path / folder / f"p{k}" / "1.png", picture(rng, face))
    same = [f"--gallery={tmp_path / 'gallery'}", f"--probes={tmp_path / 'probes'}", "--far=0.1"]
    answers = []
    for own in ([], ["--client=1"]):
        command([f"--model={tmp_path / 'run'}", *own, *same, f"--out={tmp_path / 'out'}"])
        answers.append((tmp_path / "out" / "identification.csv").read_text())
    assert answers[0] != answers[1]  # of two models
    write_ijb(tmp_path / "IJBC", rng, subjects=4)
    protocols(
        [
            "ijb",
            f"--model={tmp_path / 'run'}",
            f"--folder={tmp_path / 'IJBC'}",
            f"--workdir={tmp_path / 'ijb'}",
        ]
    )
    found = json.loads((tmp_path / "ijb" / "summary.json").read_text())
    assert 0 <= found["identification"]["both"]["rank_rate"][0] <= 1
