"""Methods and FedFR's parts on generated faces, three seeds, which draw faces and split too.

    python -m fedfr_jax.ablate --config=configs/ablation.py --workdir=runs/ablation

    --only 'without|no public'        some rows only (and the reference)
    --config.base.fed.rounds=4        another base
    --config.seeds='(0,)'             other seeds

About a minute a cell on one core, but for the rows of iresnet and the one with all public
data (five minutes).
"""

import pathlib

from ml_collections import ConfigDict

from fedfr_jax import load_config
from fedfr_jax.ablation.rows import BASELINES, FEDFR, PARTS, SWITCHES, batch_norm, fixed_epochs


def get_config():
    c = ConfigDict()
    c.base = load_config(pathlib.Path(__file__).with_name("quickstart.py"))
    c.base.data.image_size = 32
    c.base.data.generated.identities = 240
    c.base.fed.num_clients = 8
    c.base.method.fedfr.transform = "linear"  # the paper's; one of the rows is without
    c.rows = (FEDFR, *BASELINES, *PARTS, *SWITCHES, fixed_epochs(2), *batch_norm((8, 16, 32, 64)))
    c.seeds = (0, 1, 2)
    c.vary = ("seed", "data.seed")
    c.reference = FEDFR[0]
    return c
