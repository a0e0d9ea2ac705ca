"""FedFR or another method on Labeled Faces in the Wild, in insightface's RecordIO layout.

    python -m fedfr_jax.train --config=configs/lfw.py --config.data.root=FOLDER --workdir=runs/lfw
    python -m fedfr_jax.train --config=configs/lfw.py:fedavg ...

``FOLDER`` holds ``train.rec``, ``train.idx``, ``lfw.bin`` and ``lfw_bin_labels.npy`` (for each
pair of ``lfw.bin`` the identities in the numbering of ``train.rec``).
"""

from fedfr_jax.config import default_config


def get_config(method="fedfr"):
    c = default_config()
    c.data.source = "recordio"
    c.data.image_size = 48
    c.data.verification_sets = ("lfw.bin",)
    c.data.verification_labels = ("lfw_bin_labels.npy",)
    # Clients take people with at least 10 images; a third of all people is held out, so
    # that enough pairs of lfw.bin are left for the generic score; the rest is public.
    c.data.split.held_out_identities = 1900
    c.data.split.held_out_pairs = 600
    c.data.split.client_fraction = 1.0
    c.data.split.unused_public = True
    c.data.split.client_images = (10, 10_000)
    c.data.split.identities_per_client = (4, 12)
    c.data.split.verification_images = 5
    c.data.split.max_training_images = 60
    c.model.depth = 10
    c.model.widths = (16, 32, 64, 128)
    c.model.embedding = 64
    c.pretrain.epochs = 20
    c.pretrain.batch_size = 32
    c.pretrain.lr = 0.02
    c.fed.num_clients = 12
    c.fed.rounds = 6
    c.fed.batch_size = 32
    c.fed.hard_threshold = 0.6
    c.fed.lr = 1e-2
    c.fed.local_epochs = (4, 3, 2)
    c.fed.lr_decay_epochs = ()
    c.method.name = method
    return c
