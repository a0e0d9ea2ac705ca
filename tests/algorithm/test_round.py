"""The compiled round equals a plain loop over clients, written from the formulas."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from fedfr_jax.algorithm.pool import epoch_order


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def embed(method, variables, images):
    x = jnp.asarray(images, jnp.float32)
    return method.backbone.apply(variables, (x / 255 - 0.5) / 0.5, True)


def reference_loss(method, p, stats, images, labels, g, prev, trained_before, k):
    """The three terms as the paper writes them, for one client without padding."""
    f, stats = embed(method, {"params": p["backbone"], "batch_stats": stats}, images)
    rows = [p["theta"]] + ([p["public"]] if "public" in p else [])
    cosine = unit(f) @ unit(jnp.concatenate(rows)).T
    logits = 30 * (cosine - 0.4 * jax.nn.one_hot(labels, cosine.shape[1]))
    total = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])
    if method.terms.contrastive_weight:
        a = jnp.exp(jnp.sum(unit(f) * unit(g), -1) / 0.5)
        b = jnp.exp(jnp.sum(unit(f) * unit(prev), -1) / 0.5)
        total += jnp.where(
            trained_before, method.terms.contrastive_weight * jnp.mean(-jnp.log(a / (a + b))), 0
        )
    if method.terms.binary_weight:
        h = f @ p["w"].T + p["b"]
        q = 2 * ((unit(h) @ unit(p["u"]).T + 1) / 2) ** 3 - 1
        own = jax.nn.one_hot(labels, k)
        positive = 0.7 / 30 * jnp.log(1 + jnp.exp(-(30 * (q - 0.4) + p["c"])))
        negative = 0.3 / 30 * jnp.log(1 + jnp.exp(30 * (q + 0.4) + p["c"]))
        total += method.terms.binary_weight * jnp.mean(
            jnp.sum(own * positive + (1 - own) * negative, -1)
        )
    return total, stats


@functools.cache
def reference_gradient(method, k):
    return jax.jit(
        jax.grad(
            lambda p, s, x, y, g, q, before: reference_loss(method, p, s, x, y, g, q, before, k),
            has_aux=True,
        )
    )


@jax.jit
def reference_sgd(p, velocity, gradient, lr):
    velocity = jax.tree.map(lambda v, g, w: 0.9 * v + g + 5e-4 * w, velocity, gradient, p)
    return jax.tree.map(lambda w, v: w - lr * v, p, velocity), velocity


def reference_client(method, server, head, data, i, key):
    """Steps 2 and 3 of a round for client ``i``; returns (trained, stats, images trained on)."""
    fed = method.fed
    own_images, own_labels, k = data.images[i], data.labels[i], data.identities[i]
    n, most = len(own_images), max(len(x) for x in data.images)
    variables, public = server.backbone, len(data.public_labels)
    padded_k = head.class_embeddings.shape[0]
    valid = np.zeros(most + (public if method.uses_public else 0), bool)
    valid[:n] = True
    if method.uses_public:
        local, everybody = (
            unit(eval_features(method, variables, x)) for x in (own_images, data.public_images)
        )
        kept = np.asarray((everybody @ local.T > fed.hard_threshold).any(1))
        valid[most:] = kept if fed.public_data == "hard" else True
    p = {"backbone": variables["params"], "theta": head.class_embeddings[:k]}
    if method.uses_public:
        p["public"] = server.public_embeddings
    if method.uses_binary:
        p.update(
            w=head.transform["weight"],
            b=head.transform["bias"],
            u=head.binary_weight[:k],
            c=head.binary_bias[:k],
        )
    stats, velocity = variables["batch_stats"], jax.tree.map(jnp.zeros_like, p)
    r = int(server.round)
    epochs = fed.local_epochs[min(r, len(fed.local_epochs) - 1)]
    decay_epoch = (
        fed.lr_decay_epochs[r] if r < len(fed.lr_decay_epochs) else max(1, int(0.75 * epochs))
    )
    key = jax.random.fold_in(jax.random.fold_in(key, r), i)
    step = reference_gradient(method, k)
    for epoch in range(epochs):
        shuffle_key, flip_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = np.asarray(epoch_order(shuffle_key, jnp.asarray(valid)))[: valid.sum()]
        flips = np.asarray(jax.random.bernoulli(flip_key, 0.5 * fed.mirror, valid.shape))
        lr = fed.lr * (1 if epoch < decay_epoch else 0.1)
        for s in range(len(order) // fed.batch_size):
            chosen = order[s * fed.batch_size : (s + 1) * fed.batch_size]
            x = np.stack([own_images[c] if c < n else data.public_images[c - most] for c in chosen])
            x = np.where(flips[chosen][:, None, None, None], x[:, :, ::-1], x)
            y = np.array(
                [own_labels[c] if c < n else k + data.public_labels[c - most] for c in chosen]
            )
            gradient, stats = step(
                p,
                stats,
                x,
                y,
                eval_features(method, variables, x),
                eval_features(method, head.previous, x),
                head.has_trained,
            )
            p, velocity = reference_sgd(p, velocity, gradient, lr)
    assert padded_k >= k
    return p, stats, int(valid.sum())


@functools.partial(jax.jit, static_argnums=0)
def features_of(backbone, variables, images):
    x = jnp.asarray(images, jnp.float32)
    return backbone.apply(variables, (x / 255 - 0.5) / 0.5, False)[0]


def eval_features(method, variables, images):
    padding = -len(images) % 16  # few shapes are compiled
    padded = np.concatenate([images, np.zeros((padding, *np.shape(images)[1:]), np.uint8)])
    return features_of(method.backbone, variables, padded)[: len(images)]


def reference_round(method, server, heads, data, key):
    """A list of clients' results and the weighted average of what they send.

    Args:
      heads: stacked in the order of the clients.
    """
    results = [
        reference_client(method, server, jax.tree.map(lambda x, i=i: x[i], heads), data, i, key)
        for i in range(len(data.images))
    ]
    weights = np.array([n for *_, n in results], float)
    weights /= weights.sum()

    def mean(trees):
        return jax.tree.map(lambda *x: sum(w * v for w, v in zip(weights, x, strict=True)), *trees)

    backbone = {
        "params": mean([p["backbone"] for p, *_ in results]),
        "batch_stats": mean([s for _, s, _ in results]),
    }
    public = mean([p["public"] for p, *_ in results]) if method.uses_public else None
    return results, backbone, public


def assert_close(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@functools.cache
def two_reference_rounds():
    """FedFR's reference, computed once for all lane counts."""
    method, data, layout = small.method(), small.federation(), small.layout()
    cohort = data.cohort()
    server, heads = small.start(method, layout, data.public, cohort)
    first = reference_round(method, server, heads, data, jax.random.key(7))
    server, heads, _ = small.rounds(method, layout, server, heads, data.public, cohort)
    return first, reference_round(method, server, heads, data, jax.random.key(7))


def in_order(tree, cohort):
    """Rows of clients 0, 1, ... wherever their slots are."""
    clients = np.asarray(cohort.clients)
    place = np.argsort(np.where(clients < 0, len(clients), clients))[: (clients >= 0).sum()]
    return jax.tree.map(lambda x: np.asarray(x)[place], tree)


def assert_round_equals_reference(method, layout, data, references=None, table=True):
    """Compares as many rounds as there are references (default: one)."""
    cohort = data.cohort(layout.mesh.size, table=table)
    server, heads = small.start(method, layout, data.public, cohort)
    references = references or [
        reference_round(method, server, in_order(heads, cohort), data, jax.random.key(7))
    ]
    for results, backbone, public in references:
        server, heads, metrics = small.rounds(method, layout, server, heads, data.public, cohort)
        assert_close(server.backbone, backbone)
        if public is not None:
            assert_close(server.public_embeddings, public)
        ordered, measured = in_order((heads, metrics), cohort)
        for i, (p, stats, images) in enumerate(results):
            k = data.identities[i]
            assert int(measured["images"][i]) == images
            assert_close(ordered.class_embeddings[i, :k], p["theta"])
            assert not np.any(ordered.class_embeddings[i, k:])
            assert_close(
                jax.tree.map(lambda x, i=i: x[i], ordered.previous),
                {"params": p["backbone"], "batch_stats": stats},
            )
            if method.uses_binary:
                assert_close(ordered.transform["weight"][i], p["w"])
                assert_close(ordered.binary_weight[i, :k], p["u"])
                assert_close(ordered.binary_bias[i, :k], p["c"])
    assert ordered.has_trained.all()
    np.testing.assert_array_equal(heads.has_trained, np.asarray(cohort.clients) >= 0)
    return measured


@pytest.mark.parametrize(
    "lanes, devices", [(1, 1), (2, 2), pytest.param(2, 1, marks=pytest.mark.slow)]
)
def test_unequal_clients_at_several_lane_counts(lanes, devices):
    assert_round_equals_reference(
        small.method(), small.layout(lanes, devices), small.federation(), two_reference_rounds()
    )


@pytest.mark.parametrize(
    "changes, table, devices",
    [(dict(cache_features=False), True, 1), (dict(gradient_batch=2), True, 2), ({}, False, 2)],
)
def test_other_ways_to_the_same_round(changes, table, devices):
    assert_round_equals_reference(
        small.method(),
        small.layout(1, devices, **changes),
        small.federation(),
        two_reference_rounds(),
        table,
    )


def test_lanes_as_copies():
    layout = small.layout(2, 1, unroll=True)
    assert_round_equals_reference(
        small.method(), layout, small.federation(), two_reference_rounds()
    )


@pytest.mark.slow
def test_a_network_of_several_layers():
    assert_round_equals_reference(
        small.method(model=small.SPHERENET, hard_threshold=0.95),
        small.layout(2, 2),
        small.federation(),
    )


def test_a_client_without_hard_negatives():
    data = small.federation()
    # Client 0 sees black images only: no public image is like them at this threshold.
    data = dataclasses.replace(data, images=(np.zeros_like(data.images[0]), *data.images[1:]))
    metrics = assert_round_equals_reference(small.method(hard_threshold=0.8), small.layout(), data)
    assert int(metrics["hard_negatives"][0]) == 0
    assert int(metrics["hard_negatives"].max()) > 0


@pytest.mark.parametrize(
    "changes",
    [
        dict(public_data="all"),
        pytest.param(dict(public_data="off"), marks=pytest.mark.slow),
        dict(mirror=False),
    ],
)
def test_public_data_switches(changes):
    assert_round_equals_reference(small.method(**changes), small.layout(), small.federation())


def test_fedavg_is_the_round_without_the_parts_of_fedfr():
    options = dict(contrastive_weight=0.0, binary_weight=0.0)
    metrics = assert_round_equals_reference(
        small.method(options=options, public_data="off"), small.layout(), small.federation()
    )
    assert not np.any(metrics["contrastive"]) and not np.any(metrics["binary"])


def test_clients_that_are_left_out_stay_out():
    """A cohort of some clients is the round of these clients alone, whatever their slots."""
    method, data = small.method(), small.federation()
    results = []
    for devices, lanes in ((1, 1), (2, 2)):
        layout, cohort = small.layout(lanes, devices), data.cohort(devices, clients=[0, 2])
        server, heads = small.start(method, layout, data.public, cohort)
        server, heads, _ = small.rounds(method, layout, server, heads, data.public, cohort, 2)
        results.append((server, in_order(heads, cohort)))
    assert_close(*results)


def test_a_round_without_clients_changes_nothing_but_the_round():
    method, data, layout = small.method(), small.federation(), small.layout()
    cohort = data.cohort()
    server, heads = small.start(method, layout, data.public, cohort)
    nobody = cohort.replace(
        clients=jnp.full(3, -1), sizes=jnp.zeros(3, jnp.int32), used=jnp.zeros(1, jnp.int32)
    )
    after, kept, metrics = small.rounds(method, layout, server, heads, data.public, nobody)
    assert int(after.round) == 1
    chex.assert_trees_all_equal((after.backbone, kept), (server.backbone, heads))
    assert not any(np.any(m) for m in metrics.values())


@pytest.mark.slow
def test_previous_backbones_in_half_precision_or_not_at_all():
    data, layout = small.federation(), small.layout()
    cohort = data.cohort()
    full = small.method()
    no_contrast = small.method(options=dict(contrastive_weight=0.0))

    def run(method, previous):
        server, heads = small.start(method, layout, data.public, cohort, previous=previous)
        return small.rounds(method, layout, server, heads, data.public, cohort, 2)

    exact, half = run(full, "float32"), run(full, "bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(half[1].previous)} == {"bfloat16"}
    chex.assert_trees_all_close(exact[0].backbone, half[0].backbone, atol=5e-3)
    off = run(no_contrast, "off")
    assert off[1].previous is None
    assert_close(off[0].backbone, run(no_contrast, "float32")[0].backbone)


def test_batch_norm_statistics_are_averaged():
    method = small.method(model=small.TINY_NORM)
    data, layout = small.federation(), small.layout()
    assert_round_equals_reference(method, layout, data)
    cohort = data.cohort()
    server, heads = small.start(method, layout, data.public, cohort)
    after, heads, _ = small.rounds(method, layout, server, heads, data.public, cohort)
    mean = after.backbone["batch_stats"]["norm"]["mean"]
    assert np.abs(mean - server.backbone["batch_stats"]["norm"]["mean"]).max() > 1e-3
    assert np.ptp(heads.previous["batch_stats"]["norm"]["mean"], axis=0).max() > 1e-3


def test_frozen_batch_norm_keeps_its_statistics_and_trains_the_rest():
    data = small.federation()
    results = []
    for part in (0, 2):  # a gradient in parts is the same where images do not see each other
        method = small.method(model=dataclasses.replace(small.TINY_NORM, batch_norm="frozen"))
        layout = small.layout(gradient_batch=part)
        cohort = data.cohort()
        start, heads = small.start(method, layout, data.public, cohort)
        before = jax.device_get(start.backbone)
        after, heads, _ = small.rounds(method, layout, start, heads, data.public, cohort)
        chex.assert_trees_all_equal(after.backbone["batch_stats"], before["batch_stats"])
        for old, new in zip(
            jax.tree.leaves(before["params"]),
            jax.tree.leaves(after.backbone["params"]),
            strict=True,
        ):
            assert np.abs(old - new).max() > 0
        results.append((after.backbone, heads))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)
