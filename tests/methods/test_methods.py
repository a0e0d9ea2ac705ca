"""What makes each method that method."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from fedfr_jax.algorithm import losses
from fedfr_jax.algorithm.features import features, personal_features
from fedfr_jax.algorithm.gradient import gradient_in_parts
from fedfr_jax.algorithm.local_state import against_received, starting_backbone
from fedfr_jax.algorithm.pool import Batch
from fedfr_jax.algorithm.round import local_loss, server_average
from fedfr_jax.algorithm.server import SECOND_MOMENTS, adaptive
from fedfr_jax.algorithm.spec import epochs_of_round
from fedfr_jax.algorithm.transforms import TRANSFORMS
from fedfr_jax.config import resolve
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.methods import METHODS
from fedfr_jax.methods.fedface import Options, spread_out, spread_out_loss
from fedfr_jax.methods.recipe import half_squared_distance, in_output_layer
from fedfr_jax.runtime import costs
from fedfr_jax.runtime.simulation import spec_of
from fedfr_jax.settings import LossConfig

LAYOUT = small.layout()  # a program of one lane compiles twice as fast as of several


def make(name, backbone=None, loss=None, fed=None, **options):
    """A method of the registry on the tiny network; keyword arguments are its own settings."""
    config = resolve({"method": {"name": name, **({name: options} if options else {})}})
    fed = dataclasses.replace(small.FED, public_data="off", **fed or {})
    plain = small.method(fed=fed, loss=loss)
    return dataclasses.replace(
        plain, backbone=backbone or plain.backbone, recipe=METHODS[name], options=config.options
    )


def run(method, count=2, data=None, layout=LAYOUT, clients=None):
    """(server before, heads before, server after, heads after, metrics) of some rounds."""
    data = data or small.federation()
    cohort = data.cohort(layout.mesh.size, clients)
    server, heads = small.start(method, layout, data.public, cohort)
    before = jax.device_get((server, heads))
    return *before, *small.rounds(method, layout, server, heads, data.public, cohort, count)


def local_gradient(spec, trained, batch_stats, batch, is_own, has_previous, penalty=None):
    return gradient_in_parts(
        lambda t, b: local_loss(spec, t, batch_stats, b, is_own, has_previous, penalty),
        trained,
        batch,
    )


def leaves_of(tree, chosen):
    """Leaves of ``tree`` where ``chosen`` is True, and those where it is False."""
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(chosen), strict=True))
    return [x for x, c in pairs if c], [x for x, c in pairs if not c]


def assert_same(a, b, **tolerance):
    chex.assert_trees_all_close(a, b, **tolerance or dict(rtol=0, atol=0))


def differs(a, b):
    return any(
        np.abs(np.asarray(x) - y).max() > 1e-6
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_every_method_names_its_source():
    for name, recipe in METHODS.items():
        assert recipe.title and recipe.source, name


def test_fedavg_is_fedfr_without_its_parts():
    plain = make("fedfr", contrastive_weight=0.0, binary_weight=0.0)
    _, _, expected, *_ = run(plain)
    _, _, actual, *_ = run(make("fedavg"))
    assert_same(actual, expected, rtol=1e-5, atol=1e-5)


def test_fedprox_without_weight_is_fedavg_and_with_a_huge_one_stays():
    _, _, fedavg, *_ = run(make("fedavg"))
    _, _, prox, *_ = run(make("fedprox", weight=0.0))
    assert_same(prox.backbone, fedavg.backbone, rtol=1e-6, atol=1e-6)

    def moved(weight):  # no momentum and a small rate, so that a step cannot overshoot
        fed = dict(lr=1e-3, momentum=0.0, weight_decay=0.0)
        before, _, after, *_ = run(make("fedprox", fed=fed, weight=weight), 1)
        return (
            sum(
                np.sum((a - b) ** 2)
                for a, b in zip(
                    jax.tree.leaves(after.backbone), jax.tree.leaves(before.backbone), strict=True
                )
            )
            ** 0.5
        )

    assert moved(900.0) < 0.5 * moved(0.0)


def test_fedprox_gradient_is_the_formula():
    method, plain = make("fedprox", weight=0.3), make("fedavg")
    received = method.backbone.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1, received["params"])
    trained = {"backbone": params, "class_embeddings": jnp.ones((4, 8))}
    batch = Batch(jnp.asarray(small.federation().images[0][:4]), jnp.arange(4) % 3)
    mask = jnp.arange(4) < 3

    def gradient(m, penalty=None):
        return local_gradient(m, trained, {}, batch, mask, True, penalty=penalty)[0]

    with_term = gradient(
        method,
        lambda trained: method.recipe.penalty(
            method.options, trained["backbone"], received["params"]
        ),
    )
    expected = jax.tree.map(
        lambda g, w, r: g + 0.3 * (w - r), gradient(plain)["backbone"], params, received["params"]
    )
    assert_same(with_term["backbone"], expected, rtol=1e-4, atol=1e-5)


def test_moon_gradient_is_the_formula():
    method = make("moon", weight=0.7, temperature=0.4)
    assert not method.uses_binary and method.uses_contrastive
    rng = np.random.RandomState(0)
    f, g, p = (jnp.asarray(rng.standard_normal((5, 8)), jnp.float32) for _ in range(3))

    def moon(f):
        def cos(a, b):
            return jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)

        a, b = jnp.exp(cos(f, g) / 0.4), jnp.exp(cos(f, p) / 0.4)
        return 0.7 * jnp.mean(-jnp.log(a / (a + b)))

    def identity(variables, images, train):
        return variables["params"]["f"], {}

    method = dataclasses.replace(
        method, backbone=dataclasses.replace(method.backbone, apply=identity)
    )
    plain = dataclasses.replace(method, recipe=METHODS["fedavg"], options=None)
    batch = Batch(
        jnp.zeros((5, 16, 16, 3), jnp.uint8), jnp.arange(5) % 3, losses.contrastive_direction(g, p)
    )
    trained = {"backbone": {"f": f}, "class_embeddings": jnp.ones((3, 8))}

    def gradient(m):
        return local_gradient(m, trained, {}, batch, jnp.ones(3, bool), True)[0]

    difference = gradient(method)["backbone"]["f"] - gradient(plain)["backbone"]["f"]
    np.testing.assert_allclose(difference, jax.grad(moon)(f), rtol=1e-3, atol=1e-5)


def test_fedface_spreads_class_embeddings_of_different_clients_on_the_server():
    method, plain = make("fedface", margin=0.0, lr=1.0, steps=5), make("fedavg")
    data = small.federation()
    *_, spread, _ = run(method, 1)
    *_, kept, _ = run(plain, 1)
    exists = np.arange(4) < np.array(data.identities)[:, None]

    def loss(heads):
        rows = jnp.asarray(heads.class_embeddings).reshape(-1, 8)
        return float(spread_out_loss(rows, jnp.asarray(exists.reshape(-1)), 0.0))

    assert loss(spread) < loss(kept)
    assert not np.any(spread.class_embeddings[~exists])
    assert_same(spread.previous, kept.previous, rtol=1e-6, atol=1e-6)
    # The formula, over ordered pairs.
    rows = kept.class_embeddings[exists]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
    assert loss(kept) == pytest.approx(np.mean(np.maximum(cosine, 0) ** 2), rel=1e-5)
    assert "class embeddings" in costs.communication(method, 4, 3.0)["up"]
    assert "class embeddings" not in costs.communication(plain, 4, 3.0)["up"]


def test_fedfaces_published_solver_is_sgd_on_the_sum_over_pairs():
    options = Options(margin=0.1, solver="published", lr=0.05, steps=3)
    rng = np.random.default_rng(0)
    rows, exists = rng.standard_normal((5, 3)), np.array([True, True, True, True, False])
    rows[~exists] = 0

    def total(real):
        unit = real / jnp.linalg.norm(real, axis=1, keepdims=True)
        cosine = (unit @ unit.T)[~np.eye(4, dtype=bool)]
        return jnp.sum(jnp.maximum(cosine - 0.1, 0) ** 2)

    expected, velocity = rows[exists], 0
    for _ in range(3):
        gradient = jax.grad(total)(jnp.asarray(expected, jnp.float32))
        velocity = 0.9 * velocity + gradient + 5e-4 * expected
        expected = expected - 0.05 * np.asarray(velocity)
    found = spread_out(options, jnp.asarray(rows, jnp.float32), jnp.asarray(exists))
    np.testing.assert_allclose(found[exists], expected, rtol=1e-4, atol=1e-6)
    assert not np.any(found[~exists])
    with pytest.raises(ConfigError, match=r"method\.fedface\.solver is 'sgd'; use one of dir"):
        resolve({"method": {"name": "fedface", "fedface": {"solver": "sgd"}}})


@pytest.mark.parametrize("name", [pytest.param("fedper", marks=pytest.mark.slow), "fedrep"])
def test_fedper_and_fedrep_never_average_the_head(name):
    method = make(name)
    before, _, after, heads, _ = run(method)
    is_head = in_output_layer(method.backbone, before.backbone)
    (old_head, old_body), (new_head, new_body) = (
        leaves_of(s.backbone, is_head) for s in (before, after)
    )
    assert old_head and old_body
    assert_same(new_head, old_head)
    assert differs(new_body, old_body)
    for own in leaves_of(heads.previous, is_head)[0]:
        assert np.ptp(own, axis=0).max() > 1e-5  # every client has another one
    for shared in jax.tree.leaves(
        starting_backbone(method, after, jax.tree.map(lambda x: x[0], heads))
    ):
        assert np.all(np.isfinite(shared))
    start = starting_backbone(method, after, jax.tree.map(lambda x: x[1], heads))
    assert_same(leaves_of(start, is_head)[0], [x[1] for x in leaves_of(heads.previous, is_head)[0]])
    assert_same(leaves_of(start, is_head)[1], new_body)


def test_fedrep_trains_first_the_head_then_the_body():
    def trained_in_one_epoch(body_epochs):
        method = make("fedrep", fed=dict(local_epochs=(1,)), body_epochs=body_epochs)
        before, _, _, heads, _ = run(method, 1)
        is_head = in_output_layer(method.backbone, before.backbone)
        old = leaves_of(before.backbone, is_head)
        new = leaves_of(jax.tree.map(lambda x: x[0], heads.previous), is_head)
        return [differs(n, o) for n, o in zip(new, old, strict=True)]

    assert trained_in_one_epoch(0) == [True, False]
    assert trained_in_one_epoch(1) == [False, True]
    method = make("fedrep", body_epochs=1)
    turns = [bool(method.recipe.heads_turn(method.options, epoch, 4)) for epoch in range(4)]
    assert turns == [True, True, True, False]  # Collins et al., algorithm 1
    # The body's turn comes last, and with the full learning rate.
    fed = dict(local_epochs=(4,), lr_decay_epochs=(3,))
    assert epochs_of_round(make("fedrep", fed=fed), 0) == (4, 4)
    assert epochs_of_round(make("fedper", fed=fed), 0) == (4, 3)


def test_lg_fedavg_is_fedper_the_other_way_round():
    lg, per = make("lg_fedavg"), make("fedper")
    variables = lg.backbone.init(jax.random.key(0))
    assert jax.tree.leaves(lg.private(variables)) == [
        not x for x in jax.tree.leaves(per.private(variables))
    ]
    before, _, after, *_ = run(lg)
    is_head = in_output_layer(lg.backbone, before.backbone)
    assert differs(leaves_of(after.backbone, is_head)[0], leaves_of(before.backbone, is_head)[0])
    assert_same(leaves_of(after.backbone, is_head)[1], leaves_of(before.backbone, is_head)[1])


def test_fedbn_keeps_batch_normalization():
    backbone = small.backbone(small.TINY_NORM, small.SIZE)
    before, _, after, heads, _ = run(make("fedbn", backbone))
    norm = "norm"
    assert_same(after.backbone["params"][norm], before.backbone["params"][norm])
    assert_same(after.backbone["batch_stats"], before.backbone["batch_stats"])
    assert differs(after.backbone["params"]["output"], before.backbone["params"]["output"])
    assert np.ptp(heads.previous["params"][norm]["scale"], axis=0).max() > 1e-6
    with pytest.raises(InputError, match="batch normalization"):
        make("fedbn").private(small.method().backbone.init(jax.random.key(0)))


def test_local_never_hears_of_others():
    before, _, after, heads, _ = run(make("local"))
    assert_same(after.backbone, before.backbone)
    *_, alone, _ = run(make("local"), clients=[1])
    assert_same(
        jax.tree.map(lambda x: x[1], heads.previous),
        jax.tree.map(lambda x: x[0], alone.previous),
        rtol=1e-5,
        atol=1e-5,
    )
    assert costs.communication(make("local"), 4, 3.0) == {"down": {}, "up": {}}


def test_dittos_personal_copy_follows_its_equation_and_leaves_fedavg_alone():
    fed = dict(
        batch_size=5,
        momentum=0.0,
        weight_decay=0.0,
        mirror=False,
        local_epochs=(1,),
        lr_decay_epochs=(),
    )
    data = small.federation(sizes=(5, 5), identities=(3, 2))  # one step of all images per round
    method = make("ditto", fed=fed, weight=0.5)
    _, _, ditto, _, _ = run(method, 2, data)
    _, _, fedavg, _, _ = run(make("fedavg", fed=fed), 2, data)
    assert_same(ditto.backbone, fedavg.backbone, rtol=1e-6, atol=1e-6)

    w0, h0, w1, h1, _ = run(method, 1, data)
    _, _, _, h2, _ = run(method, 2, data)
    plain = dataclasses.replace(method, recipe=METHODS["fedavg"])
    for i in range(2):
        v, theta = w0.backbone["params"], h0.copy_embeddings[i]
        for received, expected in ((w0, h1), (w1, h2)):
            batch = Batch(jnp.asarray(data.images[i]), jnp.asarray(data.labels[i]))
            gradient = local_gradient(
                plain,
                {"backbone": v, "class_embeddings": theta},
                {},
                batch,
                jnp.arange(len(theta)) < data.identities[i],
                True,
            )[0]
            v, theta = (
                jax.tree.map(
                    lambda p, g, r: p - 0.02 * (g + 0.5 * (p - r)),
                    v,
                    gradient["backbone"],
                    received.backbone["params"],
                ),
                theta - 0.02 * gradient["class_embeddings"],
            )
            assert_same(
                jax.tree.map(lambda x, i=i: x[i], expected.previous["params"]),
                v,
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_finetune_is_all_of_fedavg_and_a_round_of_which_the_server_takes_nothing(rounds):
    fed = dict(rounds=rounds, local_epochs=(1,))
    before, _, fedavg, _, _ = run(make("fedavg", fed=fed), rounds)
    finetune = make("finetune", fed=fed, epochs=3)
    assert finetune.rounds == rounds + 1
    _, _, after, heads, metrics = run(finetune, finetune.rounds)
    assert_same(after.backbone, fedavg.backbone, rtol=1e-6, atol=1e-6)
    assert differs(after.backbone, before.backbone)
    assert int(after.round) == rounds + 1
    sizes = np.array([len(x) for x in small.federation().images])
    np.testing.assert_array_equal(metrics["steps"], 3 * (sizes // small.FED.batch_size))
    assert differs(jax.tree.map(lambda x: x[0], heads.previous), after.backbone)


def test_centralized_is_one_client_with_everything():
    from fedfr_jax.data.types import Clients  # noqa: PLC0415

    clients = Clients(
        np.arange(3),
        np.array([0, 2, 3]),
        np.array([0, 4, 9]),
        np.array([4, 5, 6]),
        verification_images=1,
        order=None,
    )
    union = clients.union()
    assert len(union) == 1
    np.testing.assert_array_equal(union[0].identities, [0, 1, 2])
    np.testing.assert_array_equal(
        union[0].train_images, np.concatenate([c.train_images for c in clients])
    )
    assert METHODS["centralized"].union and METHODS["centralized"].public_data == "all"


@pytest.mark.parametrize(
    "settings, optimizer",
    [
        (
            dict(server_optimizer="momentum", server_lr=0.7, server_momentum=0.5),
            optax.sgd(0.7, 0.5),
        ),
    ],
)
def test_server_optimizers_take_the_difference_for_a_gradient(settings, optimizer):
    start, _, first, *_ = run(make("fedavg", fed=settings), 1)
    _, _, average, *_ = run(make("fedavg"), 1)
    old = start.backbone["params"]
    state = optimizer.init(old)
    step, _ = optimizer.update(
        jax.tree.map(jnp.subtract, old, average.backbone["params"]), state, old
    )
    assert_same(first.backbone["params"], optax.apply_updates(old, step), rtol=1e-4, atol=1e-5)
    once = dict(settings, server_optimizer="momentum", server_lr=1.0)
    assert_same(
        run(make("fedavg", fed=once), 1)[2].backbone, average.backbone, rtol=1e-5, atol=1e-6
    )


def test_server_optimizers_keep_their_state_between_rounds():
    rng = np.random.RandomState(0)
    for name, optimizer in (
        ("momentum", optax.sgd(1.0, 0.9)),
        ("adam", adaptive(dataclasses.replace(small.FED, server_optimizer="adam"))),
    ):
        method = make("fedavg", fed=dict(server_optimizer=name))  # default learning rates
        server = small.start(
            method, LAYOUT, small.federation().public, small.federation().cohort()
        )[0]
        expected, state = server.backbone["params"], optimizer.init(server.backbone["params"])
        for _ in range(3):
            average = jax.tree.map(
                lambda x: x + 0.1 * rng.standard_normal(x.shape),
                jax.device_get(
                    {"backbone": server.backbone, "public_embeddings": server.public_embeddings}
                ),
            )
            difference = jax.tree.map(
                jnp.subtract, server.backbone["params"], average["backbone"]["params"]
            )
            step, state = optimizer.update(difference, state, expected)
            expected = optax.apply_updates(expected, step)
            server = server_average(method, server, average, jnp.float32(3))
            assert_same(server.backbone["params"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(SECOND_MOMENTS))
def test_adaptive_servers_follow_algorithm_2(name):
    fed = dataclasses.replace(
        small.FED,
        server_optimizer=name,
        server_lr=0.1,
        server_momentum=0.8,
        server_beta2=0.7,
        server_epsilon=0.05,
    )
    rng, optimizer = np.random.default_rng(0), adaptive(fed)
    x = rng.standard_normal(4)
    m, v = np.zeros(4), np.full(4, 0.05**2)
    moved = jnp.asarray(x, jnp.float32)
    state = optimizer.init(moved)
    for _ in range(3):
        delta = rng.standard_normal(4)  # the average minus the old model
        step, state = optimizer.update(jnp.asarray(-delta, jnp.float32), state, moved)
        moved = optax.apply_updates(moved, step)
        m = 0.8 * m + 0.2 * delta
        square = delta**2
        v = {
            "adagrad": v + square,
            "yogi": v - 0.3 * square * np.sign(v - square),
            "adam": 0.7 * v + 0.3 * square,
        }[name]
        x = x + 0.1 * m / (np.sqrt(v) + 0.05)
        np.testing.assert_allclose(moved, x, rtol=1e-5)


@pytest.mark.parametrize("aggregation", ["images", "uniform"])
def test_aggregation_weights(aggregation):
    _, _, after, heads, metrics = run(make("fedavg", fed=dict(aggregation=aggregation)), 1)
    sizes = np.array([9, 5, 12] if aggregation == "images" else [1, 1, 1])
    weights = np.zeros(len(heads.has_trained))
    weights[:3] = sizes / sizes.sum()
    assert list(metrics["images"][:3]) == [9, 5, 12]
    assert_same(
        after.backbone,
        jax.tree.map(lambda x: np.tensordot(weights, x, 1), heads.previous),
        rtol=1e-5,
        atol=1e-6,
    )


def test_class_embeddings_may_start_at_random():
    data, starts = small.federation(), []
    for init in ("mean_feature", "random"):
        method = make("fedfr", fed=dict(class_embedding_init=init))
        starts.append(
            np.asarray(small.start(method, LAYOUT, data.public, data.cohort())[1].class_embeddings)
        )
    exists = np.arange(4) < np.array(data.identities)[:, None]
    for rows in starts:
        assert not rows[~exists].any() and rows[exists].all(-1).all()
    assert differs(*starts)
    assert 0.003 < starts[1][exists].std() < 0.03  # 0.01 times standard normal


def test_a_detached_binary_loss_trains_the_dfc_branch_only():
    _, _, without, *_ = run(make("fedfr", binary_weight=0.0), 1)
    _, start, detached, heads, _ = run(make("fedfr", binary_detached=True), 1)
    _, _, attached, *_ = run(make("fedfr"), 1)
    assert_same(detached.backbone, without.backbone, rtol=1e-5, atol=1e-6)
    assert differs(attached.backbone, without.backbone)
    assert differs(heads.transform, start.transform)
    assert differs(heads.binary_weight, start.binary_weight)


@pytest.mark.parametrize(
    "changed",
    [dict(identification="arcface"), pytest.param(dict(balanced=True), marks=pytest.mark.slow)],
)
def test_identification_losses_reach_the_training(changed):
    data = small.federation(identities=(2, 2, 2), sizes=(9, 5, 11))
    data = dataclasses.replace(
        data, labels=tuple(np.minimum(np.arange(len(x)), 1) for x in data.images)
    )  # one image of the first person
    _, _, plain, *_ = run(make("fedavg"), 1, data)
    _, _, other, *_ = run(make("fedavg", loss=LossConfig(**changed)), 1, data)
    assert differs(other.backbone, plain.backbone)


def test_local_shares_nothing_at_all():
    for value in ("hard", "all"):
        with pytest.raises(InputError, match="nothing is shared"):
            resolve({"method": {"name": "local"}, "fed": {"public_data": value}})
    assert METHODS["local"].isolated


def test_an_upload_that_the_server_does_not_take_costs_nothing():
    ten = costs.communication(make("finetune"), 4, 3.0, rounds=10)
    assert ten["up"]["backbone"] == pytest.approx(0.9 * ten["down"]["backbone"])


def test_arcface_and_balanced_classes():
    rng = np.random.RandomState(0)
    f, rows = rng.standard_normal((6, 8)), rng.standard_normal((4, 8))
    labels, margin = np.arange(6) % 4, 0.5

    cosine = (f / np.linalg.norm(f, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ).T
    theta = np.arccos(cosine)
    own = np.eye(4)[labels].astype(bool)
    logits = 30 * np.where(own, np.cos(theta + margin), cosine)
    value = losses.margin_loss(
        jnp.asarray(f, jnp.float32),
        jnp.asarray(rows, jnp.float32),
        labels,
        scale=30.0,
        margin=margin,
        kind="arcface",
    )
    expected = -jax.nn.log_softmax(logits)[np.arange(6), labels].mean()
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    edge = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    slope = jax.grad(
        lambda c: losses.arcface_logits(c, jnp.array([0, 0]), scale=30.0, margin=0.5).sum()
    )(edge)
    assert np.all(np.isfinite(slope))

    valid = jnp.array([True, True, True, True, False])
    weights = losses.class_weights(jnp.array([0, 0, 0, 2, 2]), valid, 4)
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2, 0], rtol=1e-6)
    assert float(weights.sum() / valid.sum()) == pytest.approx(1.0)


def test_repeated_negatives_count_more_without_a_gradient():
    """The re-weighting of CosFace in FedFR's code, in a softmax written out."""
    rng = np.random.RandomState(1)
    f, rows = rng.standard_normal((5, 8)), rng.standard_normal((6, 8))
    labels, own, repeats = np.array([0, 1, 2, 4, 5]), 3, 39

    def reference(f, rows):
        unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (f, rows)]
        is_label = np.eye(6)[labels].astype(bool)
        logits = 30 * (unit[0] @ unit[1].T - 0.4 * is_label)
        frozen = jnp.exp(jax.lax.stop_gradient(logits))
        more = repeats * jnp.where(is_label, 0, frozen)[:, :own].sum(1)
        total = jnp.exp(logits).sum(1) + more
        return (jnp.log(total) - logits[np.arange(5), labels]).mean()

    def ours(f, rows):
        is_own = jnp.arange(4) < own  # the fourth class of the head is padding
        mask = jnp.array([True, True, True, False, True, True, True])
        padded = jnp.insert(rows, 3, 7.0, axis=0)
        places = jnp.where(labels < own, labels, labels + 1)
        return losses.margin_loss(
            f, padded, places, scale=30.0, margin=0.4, class_mask=mask, repeats=repeats,
            is_own=is_own,
        )  # fmt: skip

    with small.in_double():
        args = jnp.asarray(f), jnp.asarray(rows)
        expected, actual = (jax.value_and_grad(loss, (0, 1))(*args) for loss in (reference, ours))
        chex.assert_trees_all_close(actual, expected, rtol=1e-9)
    plain = run(make("fedavg"))[2]
    assert differs(run(make("fedavg", loss=LossConfig(repeated_negatives=2)))[2], plain)


def test_a_partial_batch_is_a_step_on_the_images_there_are():
    """A client of 5 images: one partial batch of 8 is one whole batch of 5."""
    data = small.federation(sizes=(5,), identities=(2,))
    whole, partial = (
        run(make("fedfr", fed={"batch_size": size, "partial_batch": size == 8}), data=data)
        for size in (5, 8)
    )
    assert_same(partial[2:4], whole[2:4], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(partial[4]["loss"], whole[4]["loss"], rtol=1e-5)
    # With 4 images in a batch, the one that is left over has a step of its own.
    left_over = run(make("fedfr", fed={"batch_size": 4, "partial_batch": True}), data=data)[4]
    assert left_over["steps"][0] == 2 * whole[4]["steps"][0]
    dropped = run(make("fedfr", fed={"batch_size": 4}), data=data)[4]
    assert left_over["steps"][0] == 2 * dropped["steps"][0]


def test_a_partial_batch_changes_nothing_where_all_are_whole():
    data = small.federation(sizes=(8, 4), identities=(2, 3))
    found = [run(make("fedfr", fed={"partial_batch": p}), data=data)[2:4] for p in (False, True)]
    assert_same(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_partial_batches_count_the_images_that_were_seen():
    config = resolve({"fed": {"partial_batch": True, "batch_size": 4}})
    metrics = {"images": np.array([5, 8]), "steps": np.array([6, 6])}  # three epochs each
    np.testing.assert_allclose(costs.trained_images(config, metrics), [15, 24])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "none")) for n in sorted(TRANSFORMS)],
)
def test_transforms_start_as_the_identity_and_belong_to_the_client(name):
    method = make("fedfr", transform=name)
    _, heads, _, after, _ = run(method, count=1)
    images = small.federation().public.images[:4]
    variables = jax.tree.map(lambda v: v[0], after.previous)

    def own(transform):
        return personal_features(method, variables, jax.tree.map(lambda v: v[0], transform), images)

    plain = features(method.backbone, variables, images)
    assert_same(own(heads.transform), plain, rtol=1e-5, atol=1e-6)
    assert differs(own(after.transform), plain) == (name != "none")
    assert differs(after.binary_weight, heads.binary_weight)  # trained with any of them


def test_penalties_are_half_squared_distances():
    assert float(half_squared_distance({"a": jnp.ones(4)}, {"a": jnp.zeros(4)})) == 2.0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n not in ("ditto", "fedface")))
        for n, r in METHODS.items()
        if r.trains and n != "fedbn"
    ],
)
def test_lanes_and_devices_do_not_change_a_method(name):
    method, results = make(name), []
    for layout in (small.layout(lanes=2), small.layout(1, 2)):
        data = small.federation()
        cohort = data.cohort(layout.mesh.size)
        server, heads = small.start(method, layout, data.public, cohort)
        server, heads, _ = small.rounds(method, layout, server, heads, data.public, cohort, 2)
        clients = np.asarray(cohort.clients)
        place = np.argsort(np.where(clients < 0, 99, clients))[:3]
        results.append((server.backbone, jax.tree.map(lambda x, p=place: x[p], heads)))
    assert_same(*results, rtol=1e-3, atol=1e-4)


def test_a_penalty_sees_all_that_the_server_sent():
    off = make("fedprox", weight=2.0)
    method = dataclasses.replace(off, fed=dataclasses.replace(off.fed, public_data="all"))
    data = small.federation()
    server, _ = small.start(method, LAYOUT, data.public, data.cohort())
    penalty = against_received(method, server, method.recipe.penalty)
    trained = {
        "backbone": server.backbone["params"],
        "class_embeddings": jnp.ones((4, 8)),
        "public_embeddings": server.public_embeddings + 1.0,
    }
    assert float(penalty(trained)) == pytest.approx(server.public_embeddings.size)
    assert float(against_received(off, server, method.recipe.penalty)(trained)) == 0.0


def test_a_client_of_one_identity_learns_from_positives_alone():
    features, classes = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([[2.0, 0.0], [0.0, 0.0]])
    settings = dict(scale=30.0, margin=0.4, positive_margin=0.9)
    labels = jnp.zeros(2, int)
    one = losses.margin_loss(
        features, classes, labels, class_mask=jnp.array([True, False]), **settings
    )
    assert float(one) == pytest.approx((0.0 + 0.3**2) / 2)
    both = [
        losses.margin_loss(
            features,
            classes,
            labels,
            class_mask=jnp.array([True, True]),
            **settings | {"positive_margin": margin},
        )
        for margin in (0.0, 0.9)
    ]
    assert float(both[0]) == float(both[1])


def test_head_and_body_both_have_a_turn():
    config = resolve(
        {
            "method": {"name": "fedrep", "fedrep": {"body_epochs": 2}},
            "fed": {"local_epochs": (3, 2)},
        }
    )
    with pytest.raises(ConfigError, match=r"fed\.local_epochs has 2"):
        spec_of(config, small.method().backbone)


def test_hard_negatives_need_the_servers_network():
    with pytest.raises(ConfigError, match=r"fed\.public_data is 'hard'"):
        resolve({"method": {"name": "fedper"}, "fed": {"public_data": "hard"}})
