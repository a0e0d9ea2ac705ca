"""Methods and FedFR's parts on ``configs/lfw_mobilefacenet.py``: real faces in low light.

    python -m fedfr_jax.ablate --config=configs/ablation_low_light.py --tune \
        --config.base.data.root=LFW --config.base.model.weights=mobilefacenet.npz \
        --workdir=runs/ablation-low-light

Learning rate and the method's own weight are chosen on five clients of other people, with the same
budget for every method; FedFR's parts are compared at FedFR's settings. The last table shows the
models of FedFR: pretrained, global, personalized, and the others that a client could use.
``--only=REGEX`` takes some of the rows.
"""

import pathlib

from ml_collections import ConfigDict

from fedfr_jax import load_config
from fedfr_jax.ablation.rows import BASELINES, FEDBN, FEDFR, PARTS

RATES = (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2)
FEW_RATES = (1e-3, 3e-3, 1e-2)
WEIGHTS = {
    "FedFR": ("fed.hard_threshold", (0.4, 0.5)),
    "FedProx": ("method.fedprox.weight", (0.01, 0.1)),
    "MOON": ("method.moon.weight", (0.1, 1.0)),
    "Ditto": ("method.ditto.weight", (0.1, 1.0)),
    "FedRep": ("method.fedrep.body_epochs", (1, 2)),
    "FedAvg + fine-tuning": ("method.finetune.epochs", (3, 6)),
}
NOT_HERE = ("pretrained", "FedFace", "LG-FedAvg")  # nothing to choose; not in the table

LONG = ("FedAvg, 16 rounds", {"method": {"name": "fedavg"}, "fed": {"rounds": 16}})


def search(row):
    """Six settings for every method."""
    if row not in WEIGHTS:
        return row, {"fed.lr": RATES}
    setting, values = WEIGHTS[row]
    return row, {"fed.lr": FEW_RATES, setting: values}


def get_config():
    c = ConfigDict()
    c.base = load_config(pathlib.Path(__file__).with_name("lfw_mobilefacenet.py"))
    c.base.eval.every = 2  # for the tables at equal communication and arithmetic
    methods = [row for row in (*BASELINES, FEDBN) if row[0] not in NOT_HERE[1:]]
    c.rows = (FEDFR, *methods, *PARTS, LONG)
    c.seeds = (0, 1, 2, 3, 4)
    c.vary = ("seed", "data.seed")
    c.reference = FEDFR[0]
    c.tune = ConfigDict()
    c.tune.seeds = (0,)
    c.tune.settings = {
        "data": {
            "split": {"tuning": True, "held_out_identities": 100, "held_out_pairs": 0},
        },
        "fed": {"num_clients": 5},
        "eval": {"variants": False, "every": 0},
    }
    c.tune.like = ((LONG[0], "FedAvg"),)
    c.tune.rows = tuple(search(name) for name, _ in (FEDFR, *methods) if name not in NOT_HERE)
    return c
