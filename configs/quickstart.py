"""FedFR on generated faces, from pretraining to report in minutes on two cores.

    python -m fedfr_jax.train --config=configs/quickstart.py:fedavg --workdir=runs/fedavg

runs another method of ``fedfr_jax/methods``.

Small where the paper is large; what differs from its settings and why: a 32-dimensional embedding,
because clients of 400 images overfit a larger transform; a learning rate of 0.005, because there
are far fewer steps; and a hard-negative threshold of 0.8, because a backbone this small
finds most faces alike (at 0.4 nearly all public images would be kept).
"""

from fedfr_jax.config import default_config


def get_config(method="fedfr"):
    c = default_config()
    c.method.name = method
    c.data.image_size = 48
    c.data.generated.identities = 240
    c.data.generated.images_per_identity = (44, 48)
    c.data.split.held_out_identities = 60
    c.data.split.held_out_pairs = 1500
    c.data.split.client_fraction = 0.5
    c.data.split.identities_per_client = (8, 12)
    c.data.split.verification_images = 6
    c.model.depth = 10
    c.model.widths = (16, 32, 64, 64)
    c.model.embedding = 32
    c.pretrain.epochs = 12
    c.pretrain.batch_size = 32
    c.pretrain.lr = 0.02
    c.fed.num_clients = 8
    c.fed.rounds = 12
    c.fed.hard_threshold = 0.8
    c.fed.batch_size = 32
    c.fed.lr = 5e-3
    c.fed.local_epochs = (4, 3, 2)
    c.fed.lr_decay_epochs = ()
    return c
