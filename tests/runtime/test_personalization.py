"""The demo keeps its promise: personalized models beat the global one, and that the pretrained."""

import pytest
from small import ROOT

from fedfr_jax.config import load_config, resolve
from fedfr_jax.experiment import Experiment


@pytest.mark.slow
def test_the_demos_order_of_models(tmp_path):
    """The demo with fewer people, clients and rounds; one seed."""
    c = load_config(ROOT / "configs" / "quickstart.py")
    c.data.generated.identities = 260
    c.data.split.public_identities = 70
    c.fed.num_clients = 10
    c.fed.rounds = 4
    c.pretrain.epochs = 8
    c.eval.every = 0
    c.eval.variants = False
    c.engine.lanes, c.engine.conv, c.model.dtype = 1, "custom", "float32"
    with Experiment(resolve(c), tmp_path) as experiment:
        experiment.run()
        models = experiment.evaluate()["models"]
    for protocol, rate in (("verification_tar", "0.01"), ("identification_openset", "0.01")):
        pretrained, shared, own = (
            models[name]["personalized"][protocol][rate]["mean"]
            for name in ("pretrained", "global", "personalized")
        )
        assert pretrained < shared < own, (protocol, pretrained, shared, own)
