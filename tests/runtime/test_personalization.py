"""The demo keeps its promise: personalized models beat the global one, and that the pretrained."""

import os
import subprocess
import sys

import pytest
from small import ROOT

from fedfr_jax.runtime.workdir import read_summary

SMALLER = {
    "data.generated.identities": 260,
    "data.split.public_identities": 70,
    "fed.num_clients": 10,
    "fed.rounds": 2,
    "pretrain.epochs": 8,
    "eval.every": 0,
    "eval.variants": False,
    "engine.lanes": 1,
    "engine.conv": "custom",
}


@pytest.mark.slow
def test_the_demos_order_of_models(tmp_path):
    """The demo with fewer people, clients and rounds; one seed."""
    flags = [f"--config.{name}={value}" for name, value in SMALLER.items()]
    command = [sys.executable, "-m", "fedfr_jax.train", "--config=configs/quickstart.py"]
    # Without the tests' flags, with which programs compile fast and run slowly.
    settings = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([*command, f"--workdir={tmp_path}", *flags], cwd=ROOT, env=settings, check=True)
    models = read_summary(tmp_path)["models"]
    for protocol, rate in (("verification_tar", "0.01"), ("identification_openset", "0.01")):
        pretrained, shared, own = (
            models[name]["personalized"][protocol][rate]["mean"]
            for name in ("pretrained", "global", "personalized")
        )
        assert pretrained < shared < own, (protocol, pretrained, shared, own)
