"""Methods and FedFR's parts on Labeled Faces in the Wild in insightface's RecordIO layout.

    python -m fedfr_jax.ablate --config=configs/ablation_lfw.py \
        --config.base.data.root=FOLDER --workdir=runs/ablation-lfw

``FOLDER`` is as in ``configs/lfw.py``. Seeds draw the split too; that of seed 2 would need more
identities with ten images than there are. About a minute a cell on one core, but far longer for the
row with all public data.
"""

import pathlib

from ml_collections import ConfigDict

from fedfr_jax import load_config
from fedfr_jax.ablation.rows import BASELINES, FEDFR, PARTS


def get_config():
    c = ConfigDict()
    c.base = load_config(pathlib.Path(__file__).with_name("lfw.py"))
    c.rows = (FEDFR, *BASELINES, *PARTS)
    c.seeds = (0, 1, 3)
    c.vary = ("seed", "data.seed")
    c.reference = FEDFR[0]
    return c
