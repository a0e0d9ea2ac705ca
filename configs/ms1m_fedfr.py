"""FedFR at the paper's numbers: 40 clients x 100 identities of MS-Celeb-1M, SphereNet-64.

Needs ``--config.data.root`` (the folder of ``train.rec``), a chip of 16 GiB and 12 GiB on the host:
clients are on the chip one at a time (``engine.part``). The backbone has 49.7 million parameters,
and every client keeps its own, on the disk. With more memory, ``--config.engine.part=0`` has all of
them on the devices at once, and public images are read once, not in every round; see
docs/scaling.md.
"""

from fedfr_jax.config import default_config


def get_config():
    c = default_config()
    c.data.source = "recordio"
    c.data.image_size = 112
    c.data.verification_sets = ("lfw.bin", "cfp_fp.bin", "agedb_30.bin")
    # Identities are shuffled; the first half is for clients, the second public.
    c.data.split.client_fraction = 0.5
    c.data.split.identities_per_client = (100, 100)
    c.data.split.client_images = (101, 109)
    c.data.split.verification_images = 40
    c.data.split.public_identities = 6000
    c.data.split.public_images = (61, 79)
    c.model.name = "spherenet"
    c.model.depth = 64
    c.model.widths = (64, 128, 256, 512)
    c.model.embedding = 512
    c.model.dtype = "bfloat16"
    # The paper's pretraining recipe is not published; this is the usual one for CosFace.
    c.pretrain.epochs = 20
    c.pretrain.batch_size = 512
    c.fed.num_clients = 40
    c.fed.rounds = 20
    c.fed.batch_size = 256
    c.fed.lr = 1e-3
    c.fed.momentum = 0.9
    c.fed.weight_decay = 5e-4
    c.fed.local_epochs = (10, 8, 6, 4)
    c.fed.lr_decay_epochs = (8,)
    c.fed.hard_threshold = 0.4
    c.method.fedfr.contrastive_weight = 5.0
    c.method.fedfr.binary_weight = 10.0
    c.eval.fars = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    c.engine.lanes = 1
    c.engine.part = 1
    return c
