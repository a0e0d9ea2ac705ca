"""Images from updates: exact where nothing hides them, gone where noise is large."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import MODEL, federation, layout, start
from small import method as fedfr

from fedfr_jax.audit import messages
from fedfr_jax.audit.inversion import (
    Search,
    distance,
    invert,
    labels_of_rows,
    psnr,
    total_variation,
)
from fedfr_jax.settings import PrivacyConfig

SEARCH = Search(steps=300, rate=0.1, smoothness=1e-3)


def face(seed=0, size=12):
    """A smooth image in [-1, 1]."""
    y, x = np.mgrid[:size, :size] / size
    rng = np.random.default_rng(seed)
    waves = [np.sin(3 * a * x + 3 * b * y + c) for a, b, c in rng.normal(size=(3, 3))]
    return jnp.asarray(0.8 * np.stack(waves, -1)[None])


def linear(images, v):
    """The update of a linear network with a bias."""
    return -jnp.concatenate([(images.reshape(len(images), -1).T @ v).reshape(-1), v.sum(0)])


@pytest.fixture(scope="module")
def search():
    return jax.jit(lambda update, x, v: invert(linear, update, x, v, SEARCH))


def test_an_image_behind_a_linear_networks_step_is_found(search):
    image, rng = face(), np.random.default_rng(1)
    v = jnp.asarray(rng.normal(size=(1, 5)))
    start_x = 0.3 * rng.normal(size=image.shape)
    start_v = -linear(image, v)[None, -5:]  # the gradient of the bias; it tells v from -v
    found, how_far = search(linear(image, v), start_x, start_v)
    assert psnr(found, image)[0] > 25 and how_far < 0.01
    clipped, _ = search(1e-3 * linear(image, v), start_x, start_v)  # a length hides nothing
    assert psnr(clipped, image)[0] > 25
    noise = 10 * np.abs(linear(image, v)).max() * rng.normal(size=linear(image, v).shape)
    lost, how_far = search(linear(image, v) + noise, start_x, start_v)
    assert psnr(lost, image)[0] < 12 and how_far > 0.3


def test_terms_are_what_they_say():
    a, b = jnp.array([1.0, 0.0]), jnp.array([3.0, 3.0])
    assert float(distance(a, b)) == pytest.approx(1 - 2**-0.5)
    flat = jnp.zeros((1, 4, 4, 3))
    steps = jnp.arange(4.0)[None, :, None, None] + flat
    assert total_variation(flat) == 0 and total_variation(steps) == 1
    assert float(psnr(flat, flat + 0.2)[0]) == pytest.approx(20, abs=1e-3)  # 0.1 of the range


@pytest.fixture(scope="module")
def step():
    """(setting of a client with three people, its head, two of its images, their labels)."""
    spec = fedfr(model=MODEL, conv="grouped", public_data="off", weight_decay=5e-4)
    data = federation()
    server, heads = start(spec, layout(), data.public, data.cohort())
    setting = messages.Setting(spec, None, None, jax.device_get(server))
    head = jax.tree.map(lambda x: np.asarray(x[0]), jax.device_get(heads))
    images = jnp.asarray(data.images[0][:2] / 127.5 - 1, jnp.float32)
    return setting, head, images, jnp.asarray(data.labels[0][:2], jnp.int32)


def test_both_attackers_simulate_the_clients_message(step):
    setting, head, images, labels = step
    seen = jax.jit(
        lambda x, y: messages.observed(setting, head, x, y, jax.random.key(0), messages.CLEAR)
    )
    update, _ = seen(images, labels)
    known = jax.jit(messages.simulate_knowing(setting, head, labels))(images, None)
    assert float(distance(known, update)) < 1e-5
    # Who does not know the head can explain the same message by gradients at the features.
    simulate = jax.jit(messages.simulate_privately(setting))
    v = gradients_at_features(setting, head, images, labels)
    np.testing.assert_allclose(setting.spec.fed.lr * simulate(images, v), update, atol=2e-6)
    start_v = messages.feature_gradients(setting, update, 2, jax.random.key(1))
    assert start_v.shape == v.shape
    one, _ = seen(images[:1], labels[:1])
    known_v = messages.feature_gradients(setting, one, 1, jax.random.key(1))
    v = gradients_at_features(setting, head, images[:1], labels[:1])
    np.testing.assert_allclose(known_v, v, rtol=2e-2, atol=1e-3)
    for label in (0, 1, 2):
        rows = seen(images[:1], jnp.array([label]))[1]
        fed, before = setting.spec.fed, head.class_embeddings
        found = labels_of_rows(rows, before, 1, rate=fed.lr, decay=fed.weight_decay)
        assert found.tolist() == [label]


def gradients_at_features(setting, head, images, labels):
    """d loss / d features, by a network that returns its features plus an offset."""
    spec, size = setting.spec, (len(images), setting.spec.backbone.embedding)

    def loss(offset):
        def apply(variables, x, train):
            f, stats = spec.backbone.apply(variables, x, train)
            return f + offset, stats

        backbone = dataclasses.replace(spec.backbone, apply=apply)
        own = dataclasses.replace(setting, spec=dataclasses.replace(spec, backbone=backbone))
        state = messages.local_state.initial_state(own.spec, own.server, head)
        batch = messages._batch(own, head, images, labels)
        return messages.local_loss(
            own.spec, state.trained, state.batch_stats, batch, messages._is_own(head), False
        )[0]

    return jax.jit(jax.grad(loss))(jnp.zeros(size))


def test_observers_see_the_pipeline(step):
    setting, head, images, labels = step
    privacy = PrivacyConfig(clip_norm=1e-3, noise_multiplier=2.0)
    spec = dataclasses.replace(
        setting.spec,
        message=dataclasses.replace(setting.spec.message, privacy=privacy, cohort=10),
    )
    private = dataclasses.replace(setting, spec=spec)
    assert messages.observers(setting.spec) == [messages.CLEAR]
    assert messages.observers(spec) == [messages.CLEAR, messages.SENT, messages.RELEASED]

    def see(who):
        found = messages.observed(private, head, images[:1], labels[:1], jax.random.key(0), who)
        return found[0]

    seen = {who: jax.jit(see, static_argnums=0)(who) for who in messages.observers(spec)[1:]}
    assert float(jnp.linalg.norm(seen[messages.SENT])) == pytest.approx(1e-3, rel=1e-3)
    noise = seen[messages.RELEASED] - seen[messages.SENT]
    assert float(noise.std()) == pytest.approx(2e-3, rel=0.1)
    masked = dataclasses.replace(privacy, secure_aggregation=True)
    spec = dataclasses.replace(spec, message=dataclasses.replace(spec.message, privacy=masked))
    assert messages.observers(spec) == [messages.CLEAR, messages.RELEASED]
