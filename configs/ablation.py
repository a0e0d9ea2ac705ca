"""Methods and FedFR's parts on generated faces, three seeds, which draw faces and split too.

    python -m fedfr_jax.ablate --config=configs/ablation.py --workdir=runs/ablation

    --only 'without|no public'        some rows only (and the reference)
    --config.base.fed.rounds=4        another base
    --config.seeds='(0,)'             other seeds
"""
from ml_collections import ConfigDict

from fedfr_jax.ablations import BASELINES, BATCH_NORM, FEDFR, PARTS, SWITCHES, fixed_epochs
from fedfr_jax.config import default_config


def get_base():
    """A small federation: what a client learns in a round is little, and rounds are cheap."""
    c = default_config()
    c.data.image_size = 48
    c.data.generated.identities = 240
    c.data.generated.images_per_identity = (44, 48)
    c.data.split.held_out_identities = 60
    c.data.split.held_out_pairs = 1500
    c.data.split.identities_per_client = (8, 12)
    c.data.split.verification_images = 6
    c.model.depth = 10
    c.model.widths = (16, 32, 64, 64)
    c.model.embedding = 32
    c.pretrain.epochs = 12
    c.pretrain.batch_size = 32
    c.pretrain.lr = 0.02
    c.fed.num_clients = 8
    c.fed.rounds = 8
    c.fed.hard_threshold = 0.8
    c.fed.batch_size = 32
    c.fed.lr = 5e-3
    c.fed.local_epochs = (4, 3, 2)
    c.fed.lr_decay_epochs = ()
    return c


def get_config():
    c = ConfigDict()
    c.base = get_base()
    c.rows = (FEDFR, *BASELINES, *PARTS, *SWITCHES, fixed_epochs(2), *BATCH_NORM)
    c.seeds = (0, 1, 2)
    c.vary = ("seed", "data.seed")
    c.reference = FEDFR[0]
    return c
