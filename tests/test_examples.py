"""The example runs, and a round of it equals a plain loop; so do the snippets of docs/engine.md."""

import functools
import io
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds
from flax import linen as nn
from PIL import Image
from small import ROOT

from fedfr_jax import engine, population

EXAMPLE = ROOT / "examples" / "image_classifier.py"
SIZES, BATCH, CLASSES, SIDE = (7, 12, 0, 3, 10), 4, 3, 10  # clients, one of them without images


def run_example(*arguments):
    """The names that the example defines, after it ran."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["image_classifier.py", *arguments])
        return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def example():
    """The example after a few rounds of a few users."""
    return run_example(
        *(
            "--users=5",
            "--cohort=3",
            "--rounds=3",
            "--batch=5",
            "--server=adam",
            "--server_lr=0.003",
        )
    )


def test_the_example_is_short():
    code = re.sub(r'""".*?"""', "", EXAMPLE.read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60


def test_it_learns(example):
    assert example["correct"](example["model"], example["images"]).mean() > 0.3  # chance: 0.1
    took_part = [set(example["clients"].id.tolist()), set(example["chosen"].tolist())]
    assert took_part[0] - {-1} == took_part[1] - {-1}
    assert int(example["state"]["rounds"].max()) > 1  # somebody's state came back from the store


class Plain(nn.Module):
    """The network of the example from Flax's own layers: the same names, shapes and masks."""

    @nn.compact
    def __call__(self, images, deterministic):
        x = images / 255
        for width in (32, 64):
            x = nn.relu(nn.Conv(width, (3, 3), padding="VALID")(x))
        x = nn.Dropout(0.25)(nn.max_pool(x, (2, 2), (2, 2)), deterministic).reshape(len(x), -1)
        x = nn.Dropout(0.5)(nn.relu(nn.Dense(128)(x)), deterministic)
        return nn.Dense(CLASSES)(x)


@jax.jit
def plain_step(trained, images, labels, count, key):
    """(loss of the first ``count`` images, its gradient)."""

    def loss(trained):
        logits = Plain().apply(trained["model"], images, False, rngs={"dropout": key})
        logits += trained["bias"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
        return -jnp.sum(jnp.where(jnp.arange(BATCH) < count, chosen, 0)) / count

    return jax.value_and_grad(loss)(trained)


def plain_round(model, memory, server, local, images, labels, shares, states, chosen, key):
    """What the example computes in a round, one client, step and image after the other."""
    models, losses, most = [], [], max(SIZES)
    for client in chosen.tolist():
        own, trained = shares[client], {"model": model, "bias": states[client]["bias"]}
        own_key = jax.random.fold_in(jax.random.fold_in(key, client), 0)  # the first epoch
        of_order, of_steps = jax.random.split(own_key)
        drawn = np.array(jax.random.uniform(of_order, (most,)))[: len(own)]
        order, slots, total = np.argsort(drawn), local.init(trained), 0.0
        for step, start in enumerate(range(0, len(own), BATCH)):
            batch = own[order[start : start + BATCH]]
            filled = np.resize(batch, BATCH)
            loss, gradient = plain_step(
                trained,
                images[filled],
                labels[filled],
                len(batch),
                jax.random.fold_in(of_steps, step),
            )
            change, slots = local.update(gradient, slots, trained)
            trained, total = optax.apply_updates(trained, change), total + loss * len(batch)
        states[client] = {"bias": trained["bias"], "rounds": states[client]["rounds"] + 1}
        models.append(trained["model"])
        losses.append(total / max(len(own), 1))
    average = jax.tree.map(lambda *x: sum(x) / len(x), *models)
    gradient = jax.tree.map(lambda new, old: old - new, average, model)
    change, memory = server.update(gradient, memory, model)
    return optax.apply_updates(model, change), memory, np.mean(losses)


def problem():
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(sum(SIZES), SIDE, SIDE, 3), dtype=np.uint8)
    labels = rng.integers(CLASSES, size=len(images)).astype(np.int32)
    shares = np.split(rng.permutation(len(images)), np.cumsum(SIZES)[:-1])
    return images, labels, shares


@pytest.mark.parametrize("devices", [1, 2])
def test_rounds_equal_a_plain_loop_over_clients(example, devices):
    images, labels, shares = problem()
    mesh = engine.make_mesh(jax.devices()[:devices])
    # A large epsilon: Adam would blow up the rounding of gradients that are nearly zero.
    local, server = optax.sgd(0.1), optax.adam(0.01, eps=1e-3)
    network = example["Network"](CLASSES)
    model = network.init(jax.random.key(1), jnp.asarray(images[:1]), True)
    run = example["compile_round"](network, local, server, BATCH, mesh)
    expected, memory, other = model, server.init(model), server.init(model)
    user = {"bias": np.zeros(CLASSES, np.float32), "rounds": np.int32(0)}
    states = [user] * len(SIZES)
    with population.RowStore(user, len(SIZES), None) as store:
        for r, chosen in enumerate(np.array([[0, 1, 2], [1, 3, 4], [0, 4, -1]])):
            key = jax.random.fold_in(jax.random.key(0), r)
            clients = population.pack_ragged(
                lambda n: {"images": images[n], "labels": labels[n]},
                shares,
                chosen,
                devices=devices,
            )
            slots = engine.spread((clients, store.read(clients.id)), mesh)
            model, memory, state, loss = run(model, memory, *slots, key)
            store.write(clients.id, state, r)
            expected, other, expected_loss = plain_round(
                *(expected, other, server, local, images, labels, shares, states),
                *(chosen[chosen >= 0], key),
            )
            np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        assert store.touched().tolist() == [0, 1, 2, 3, 4]
        for client, found in enumerate(store.read(np.arange(5))["bias"]):
            np.testing.assert_allclose(found, states[client]["bias"], atol=1e-5)
        assert store.read(np.arange(5))["rounds"].tolist() == [2, 2, 1, 1, 2]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), model, expected)


class Stripes(tfds.core.GeneratorBasedBuilder):
    """Small gray images of horizontal and of vertical stripes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(16, 16, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["horizontal", "vertical"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(0, 60), "test": self._generate_examples(60, 100)}

    def _generate_examples(self, start, end):
        rng = np.random.default_rng(start)
        for i in range(start, end):
            stripes = np.arange(16)[:, None] // 2 % 2 * 100 + rng.integers(100, size=(16, 16))
            image, out = (stripes.T if i % 2 else stripes).astype(np.uint8), io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            yield i, {"image": out.getvalue(), "label": i % 2}


def test_it_learns_from_a_data_set_of_the_catalog_without_tensorflow(tmp_path, monkeypatch):
    Stripes(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it fails
    found = run_example(
        *("--tfds=stripes", f"--data_dir={tmp_path}", "--size=16", "--users=6", "--cohort=6"),
        *("--rounds=6", "--batch=5", "--seed=3"),
    )
    assert sorted(np.concatenate(found["shares"]).tolist()) == list(range(60))
    assert len(found["images"]) == 40
    assert found["correct"](found["model"], found["images"]).mean() > 0.8  # chance: 0.5


def test_the_snippets_of_the_document_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "engine.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) >= 8
    names = {}
    for snippet in snippets:  # one after the other, as a reader would type them
        assert len(snippet.splitlines()) <= 25, snippet
        exec(compile(snippet, "docs/engine.md", "exec"), names)
