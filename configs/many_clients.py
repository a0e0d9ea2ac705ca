"""A cohort of 64 of 10,000 clients in each of three rounds: minutes on two cores.

    python -m fedfr_jax.train --config=configs/many_clients.py --workdir=runs/many

Faces are rendered on the device when their client takes part. FedAvg with few public people:
FedFR's hard negatives need a backbone that was pretrained for longer.
"""

from fedfr_jax.config import default_config


def get_config(method="fedavg"):
    c = default_config()
    c.method.name = method
    c.data.image_size = 32
    c.data.images = "render"
    c.data.generated.identities = 41_000
    c.data.generated.images_per_identity = (16, 16)
    c.data.split.held_out_identities = 60
    c.data.split.held_out_pairs = 1500
    c.data.split.client_fraction = 0.99
    c.data.split.identities_per_client = (4, 4)
    c.data.split.verification_images = 6
    c.data.split.public_identities = 50
    c.model.depth = 4
    c.model.widths = (16, 32, 64, 64)
    c.model.embedding = 32
    c.pretrain.epochs = 4
    c.pretrain.batch_size = 32
    c.pretrain.lr = 0.02
    c.fed.num_clients = 10_000
    c.fed.rounds = 3
    c.fed.batch_size = 32
    c.fed.lr = 5e-3
    c.fed.local_epochs = (4, 3, 2)
    c.fed.lr_decay_epochs = ()
    c.population.cohort = 64
    c.eval.clients = 20
    return c
