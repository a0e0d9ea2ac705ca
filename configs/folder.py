"""FedFR or another method on images of your own: one folder per person.

    python -m fedfr_jax.train --config=configs/folder.py --config.data.root=FOLDER --workdir=runs/x

``FOLDER/person/image.jpg``: faces, cut out and upright. The settings below want 80 people or more
with 12 images each; what does not fit your folder is said at once, with the setting to change.
"""

from fedfr_jax.config import default_config


def get_config(method="fedfr"):
    c = default_config()
    c.data.source = "folder"
    c.data.image_size = 48
    # A quarter of the people is held out for the generic score; of the others, half are
    # clients' and half are public.
    c.data.split.held_out_identities = 20
    c.data.split.held_out_pairs = 300
    c.data.split.client_fraction = 0.5
    c.data.split.unused_public = True
    c.data.split.client_images = (12, 10_000)
    c.data.split.identities_per_client = (4, 6)
    c.data.split.verification_images = 4
    c.model.depth = 10
    c.model.widths = (16, 32, 64, 64)
    c.model.embedding = 64
    c.pretrain.epochs = 12
    c.pretrain.batch_size = 32
    c.pretrain.lr = 0.02
    c.fed.num_clients = 5
    c.fed.rounds = 6
    c.fed.batch_size = 32
    c.fed.lr = 5e-3
    c.fed.hard_threshold = 0.7
    c.fed.local_epochs = (4, 3, 2)
    c.fed.lr_decay_epochs = ()
    c.method.name = method
    return c
