"""Federated learning of an image classifier: the engine without faces.

The network and the settings are those of pfl-research's CIFAR-10 benchmark: 1,000 users with 50
images each, 50 of them per round, one epoch of batches of 10. Besides the shared network, every
user trains a bias of the classes that stays with it, in a store on disk. The images are patterns
under noise, or those of a data set of the TensorFlow Datasets catalog with the splits train and
test. Prepare it with ``tfds build NAME --file_format=array_record``; it is read without
TensorFlow, one cohort at a time. The accuracy is that of the shared network on up to 1,000 test
images, drawn at random.

    python examples/image_classifier.py
    python examples/image_classifier.py --tfds=cifar10 --data_dir=/data/tfds --rounds=1500

FedJAX's example for EMNIST has the same network: 10 clients per round, Adam on the server.

    python examples/image_classifier.py --tfds=emnist/byclass --size=28 --users=3400 --cohort=10 \
        --batch=20 --lr=0.03 --server=adam --server_lr=0.003 --rounds=1500
"""

import argparse
import tempfile

import jax
import numpy as np
import optax
from flax import linen as nn

from fedfr_jax import data, engine, population

DATA = dict(tfds="", data_dir="", size=32, users=1000, seed=0)
TRAINING = dict(rounds=5, cohort=50, batch=10, lr=0.1, server="sgd", server_lr=1.0)


class Network(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, deterministic):
        x = nn.relu(engine.Conv(32, padding=0, use_bias=True, init=engine.torch_init)(images / 255))
        x = nn.relu(engine.Conv(64, padding=0, use_bias=True, init=engine.torch_init)(x))
        x = nn.Dropout(0.25)(engine.max_pool(x), deterministic).reshape(len(x), -1)
        x = nn.Dropout(0.5)(nn.relu(engine.Dense(128, init=engine.torch_init)(x)), deterministic)
        return engine.Dense(self.classes, init=engine.torch_init)(x)


def generated(users, rng):
    """Ten patterns under noise: 50 images per user, and 500 to test on."""
    labels = rng.integers(10, size=50 * users + 500)
    patterns = rng.integers(96, size=(10, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    images = patterns[labels] + rng.integers(160, size=(len(labels), 32, 32, 3), dtype=np.uint8)
    return data.array_source(images, labels, {"train": 50 * users, "test": 500})


def compile_round(network, local, server, batch, mesh):
    """A round: (model, memory of ``server``), clients, their states, key -> the next, mean loss."""

    def losses(trained, examples, key):
        logits = network.apply(trained["model"], examples["images"], False, rngs={"dropout": key})
        logits += trained["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples["labels"])

    def update(lane, shared, device, client, state):
        start, own = {"model": shared[0], "bias": state["bias"]}, (client.examples, client.size)
        key = jax.random.fold_in(shared[1], client.id)
        end, loss = engine.train_locally(lane, losses, start, *own, local, batch=batch, key=key)
        return (end["model"], loss), 1.0, {"bias": end["bias"], "rounds": state["rounds"] + 1}, ()

    def run(model, memory, clients, state, key):
        args = dict(clients=clients, state=state, work=clients.size, taken=clients.taken, mesh=mesh)
        (average, loss), _, state, _ = engine.for_each_client(update, (model, key), **args)
        return *engine.server_step(server, model, memory, average), state, loss

    return jax.jit(run)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
for name, value in (DATA | TRAINING).items():
    parser.add_argument(f"--{name}", type=type(value), default=value)
o = parser.parse_args()
engine.use_cpu_devices()
key, rng, mesh = jax.random.key(o.seed), np.random.default_rng(o.seed), engine.make_mesh()
source = data.open_tfds(o.tfds, o.size, data_dir=o.data_dir) if o.tfds else generated(o.users, rng)
shares = np.array_split(rng.permutation(source.splits["train"]), o.users)
images, labels = source.examples(rng.permutation(source.splits["test"])[:1000]).values()
network, server = Network(source.num_identities), getattr(optax, o.server)(o.server_lr)
model = jax.jit(network.init, static_argnums=2)(key, images[:1], True)
model, memory = engine.replicate((model, server.init(model)), mesh)
run = compile_round(network, optax.sgd(o.lr), server, o.batch, mesh)
correct = jax.jit(lambda model, x: network.apply(model, x, True).argmax(-1) == labels)
user = {"bias": np.zeros(network.classes, np.float32), "rounds": np.int32(0)}
with tempfile.TemporaryDirectory() as d, population.RowStore(user, o.users, d + "/rows") as store:
    for r, chosen in enumerate(population.sample_cohorts(o.users, o.rounds, o.cohort, seed=o.seed)):
        clients = population.pack_ragged(source.examples, shares, chosen, devices=mesh.size)
        slots = engine.spread((clients, store.read(clients.id)), mesh)
        model, memory, state, loss = run(model, memory, *slots, jax.random.fold_in(key, r))
        store.write(clients.id, state, r)
        print(f"round {r + 1}: loss {loss:.3f}, accuracy {correct(model, images).mean():.3f}")
