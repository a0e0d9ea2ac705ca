"""What each part of FedFR brings on ``configs/lfw_mobilefacenet.py``: real faces in low light.

    python -m fedfr_jax.ablate --config=configs/ablation_low_light.py \
        --config.base.data.root=LFW --config.base.model.weights=mobilefacenet.npz \
        --workdir=runs/ablation-low-light

The last table shows the models of FedFR: pretrained, global, personalized, and the others that a
client could use. ``--only=REGEX`` takes some of the rows.
"""

import pathlib

from ml_collections import ConfigDict

from fedfr_jax import load_config
from fedfr_jax.ablation.rows import BASELINES, FEDFR, PARTS


def get_config():
    c = ConfigDict()
    c.base = load_config(pathlib.Path(__file__).with_name("lfw_mobilefacenet.py"))
    some = ("pretrained", "FedAvg")
    c.rows = (FEDFR, *(row for row in BASELINES if row[0] in some), *PARTS)
    c.seeds = (0, 1, 2, 3, 4)
    c.vary = ("seed", "data.seed")
    c.reference = FEDFR[0]
    return c
