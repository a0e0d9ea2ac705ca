"""The experiments as the authors' published code runs them, at the paper's numbers.

    python -m fedfr_jax.train --config=configs/authors.py --config.data.root=MS1M \\
        --workdir=runs/authors
    python -m fedfr_jax.train --config=configs/authors.py:fedavg ...

It differs from ``configs/ms1m_fedfr.py`` where the code does: class embeddings of clients start at
random (those of public people come from the pretrained classifier, as always). Methods without
public data have mini-batches of 64, train on the partial batch at the end of an epoch, too, and do
not lower the learning rate within a round. ``docs/differences.md`` lists what is still different.
"""

import pathlib

from fedfr_jax import load_config
from fedfr_jax.methods import METHODS


def get_config(method="fedfr"):
    c = load_config(pathlib.Path(__file__).with_name("ms1m_fedfr.py"))
    c.method.name = method
    c.fed.class_embedding_init = "random"
    if METHODS[method].public_data == "off":
        c.fed.batch_size = 64
        c.fed.partial_batch = True
        c.fed.lr_decay = 1.0
    return c
