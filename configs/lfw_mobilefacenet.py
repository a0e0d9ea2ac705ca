"""Fine-tuning a strong backbone: real faces in low light, and the published MobileFaceNet.

    python -m fedfr_jax.train --config=configs/lfw_mobilefacenet.py --config.data.root=LFW \\
        --config.model.weights=mobilefacenet.npz --workdir=runs/low_light

``LFW`` holds ``train.rec`` and ``train.idx`` as insightface has them; the weights are a
MobileFaceNet trained on MS-Celeb-1M, in arrays under their MXNet names. With 99.45 % on LFW it has
nothing left to learn there, so all images are taken in low light: 7 % of the light, sensor noise,
brightness restored. Only the last layers train, from ``res_5`` up, and batch norm keeps its
statistics; what lies below is computed once per image.
"""

from fedfr_jax.config import default_config


def get_config(method="fedfr"):
    c = default_config()
    c.method.name = method
    c.data.source = "recordio"
    c.data.image_size = 112
    c.data.degrade.low_light = 0.93
    # 10 clients of 8 people with 10 images or more. A third of all people is for choosing settings,
    # and of the others about a sixth is held out.
    c.data.split.tuning_fraction = 0.35
    c.data.split.held_out_identities = 600
    c.data.split.held_out_pairs = 600
    c.data.split.client_fraction = 1.0
    c.data.split.client_images = (10, 10_000)
    c.data.split.identities_per_client = (8, 8)
    c.data.split.verification_images = 5
    c.data.split.max_training_images = 20
    c.data.split.unused_public = True
    c.data.split.public_identities = 200
    c.data.split.public_images = (3, 10_000)
    c.model.name = "mobilefacenet"
    c.model.embedding = 128
    c.model.batch_norm = "frozen"
    c.pretrain.epochs = 0  # model.weights is the pretrained backbone
    c.fed.trainable = "res_5_block0"
    c.fed.num_clients = 10
    c.fed.rounds = 4
    c.fed.batch_size = 16
    c.fed.local_epochs = (4, 3, 3, 3)
    c.fed.lr = 3e-3
    c.fed.lr_decay_epochs = ()
    c.fed.hard_threshold = 0.4
    c.fed.mirror = False
    return c
