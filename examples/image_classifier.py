"""Federated learning of an image classifier: the engine without faces.

The network and the settings are those of pfl-research's CIFAR-10 benchmark: 1,000 users with 50
images each, 50 of them per round, one epoch of batches of 10. Besides the shared network, every
user trains a bias of the classes that stays with it, in a store on disk. The images are patterns
under noise, or those of a data set of the TensorFlow Datasets catalog that was prepared with
``tfds build NAME --file_format=array_record`` in TFDS_DATA_DIR. They are read without TensorFlow,
one cohort at a time.

    python examples/image_classifier.py
    python examples/image_classifier.py --tfds=cifar10 --rounds=1500

As in FedJAX's example for EMNIST, with 10 clients per round and Adam on the server:

    python examples/image_classifier.py --tfds=emnist/byclass --image_size=28 --users=3400 \
        --cohort=10 --batch=20 --lr=0.03 --server=adam --server_lr=0.003 --rounds=1500
"""

import argparse

import jax
import numpy as np
import optax
from flax import linen as nn

from fedfr_jax import data, engine, population

DATA = dict(tfds="", image_size=32, users=1000, store="runs/users.rows", seed=0)
TRAINING = dict(rounds=6, cohort=50, batch=10, lr=0.1, server="sgd", server_lr=1.0)


class Network(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(engine.Conv(32, padding=0, use_bias=True)(images / 128 - 1))
        x = nn.relu(engine.Conv(64, padding=0, use_bias=True)(x))
        x = nn.Dropout(0.25, deterministic=not train)(engine.max_pool(x))
        x = nn.relu(engine.Dense(128)(x.reshape(len(x), -1)))
        return engine.Dense(self.classes)(nn.Dropout(0.5, deterministic=not train)(x))


def generated(users, rng):
    """Ten patterns under noise: 50 images per user, and as many as users to test on."""
    labels = rng.integers(10, size=51 * users)
    patterns = rng.integers(32, size=(10, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    images = patterns[labels] + rng.integers(224, size=(51 * users, 32, 32, 3), dtype=np.uint8)
    return data.array_source(images, labels, {"train": 50 * users, "test": users})


def compile_round(network, local, server, batch, mesh):
    """A round: (model, memory of ``server``), clients, their states, key -> the next, losses."""

    def losses(trained, examples, key):
        logits = network.apply(trained["model"], examples["images"], True, rngs={"dropout": key})
        logits += trained["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples["labels"])

    def update(lane, shared, device, client, state):
        start, own = {"model": shared[0], "bias": state["bias"]}, (client.examples, client.size)
        key = jax.random.fold_in(shared[1], client.id)
        end, loss = engine.train_locally(lane, losses, start, *own, local, batch=batch, key=key)
        return end["model"], 1.0, {"bias": end["bias"], "rounds": state["rounds"] + 1}, loss

    def run(model, memory, clients, states, key):
        layout = dict(work=clients.size, taken=clients.taken, mesh=mesh)
        done = engine.for_each_client(update, (model, key), (), clients, states, **layout)
        return *engine.server_step(server, model, memory, done.average), done.state, done.metrics

    return jax.jit(run)


parser = argparse.ArgumentParser()
for name, value in (DATA | TRAINING).items():
    parser.add_argument(f"--{name}", type=type(value), default=value)
o = parser.parse_args()
engine.use_cpu_devices()
key, rng, mesh = jax.random.key(o.seed), np.random.default_rng(o.seed), engine.make_mesh()
source = data.open_tfds(o.tfds, o.image_size) if o.tfds else generated(o.users, rng)
shares = np.array_split(rng.permutation(source.splits["train"]), o.users)
test = source.examples(rng.permutation(source.splits["test"])[:1000])
network, server = Network(source.num_identities), getattr(optax, o.server)(o.server_lr)
model = jax.jit(network.init, static_argnums=2)(key, test["images"][:1], False)
model, memory = engine.replicate((model, server.init(model)), mesh)
run = compile_round(network, optax.sgd(o.lr), server, o.batch, mesh)
predict = jax.jit(lambda model, images: network.apply(model, images, False).argmax(-1))
user = {"bias": np.zeros(network.classes, np.float32), "rounds": np.int32(0)}
with population.RowStore(user, o.users, o.store) as store:
    store.rewind(0)
    for r, chosen in enumerate(population.sample_cohorts(o.users, o.rounds, o.cohort, seed=o.seed)):
        clients = population.pack_ragged(source.examples, shares, chosen, devices=mesh.size)
        arrays = engine.spread((clients, store.read(clients.id)), mesh)
        model, memory, states, losses = run(model, memory, *arrays, jax.random.fold_in(key, r))
        store.write(clients.id, states, r)
        accuracy = np.mean(predict(model, test["images"]) == test["labels"])
        print(f"round {r + 1}: loss {losses.sum() / len(chosen):.3f}, accuracy {accuracy:.3f}")
