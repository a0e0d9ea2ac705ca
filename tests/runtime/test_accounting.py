"""What a run's noise proves, and that it is the same however the run is interrupted."""

import dataclasses

import numpy as np
import pytest
from quick import SETTINGS, compiled_once, quick  # noqa: F401
from small import final_state, write_run

from fedfr_jax.config import resolve
from fedfr_jax.errors import ConfigError
from fedfr_jax.experiment import Experiment
from fedfr_jax.population.sampling import drop_out, sample_cohorts
from fedfr_jax.reporting.privacy_table import privacy_table
from fedfr_jax.runtime import accounting, costs, workdir
from fedfr_jax.runtime.accounting import Mechanism, gaussian_epsilon
from fedfr_jax.runtime.simulation import make_spec
from fedfr_jax.settings import PopulationConfig

PRIVATE = {"clip_norm": 0.5, "noise_multiplier": 2.0}
library = pytest.mark.skipif(
    not pytest.importorskip("importlib.util").find_spec("dp_accounting"),
    reason="needs the extra for privacy",
)


def test_one_gaussian_is_the_known_closed_form():
    # The classic bound of Dwork and Roth holds, and is not tight.
    for delta in (1e-3, 1e-6):
        z = np.sqrt(2 * np.log(1.25 / delta)) / 0.9
        assert 0.5 < gaussian_epsilon(z, delta) < 0.9
    assert gaussian_epsilon(1e9, 1e-5) == 0
    many = [gaussian_epsilon(1 / np.sqrt(k), 1e-5) for k in (1, 4, 100)]
    assert many == sorted(many) and np.isfinite(many).all()
    # By sampling: P(loss > eps) - e^eps P(loss' < -eps) is delta.
    draws = np.random.default_rng(0).normal(size=2_000_000)
    z, delta = 1.3, 0.01
    epsilon = gaussian_epsilon(z, delta)
    upper = (draws > epsilon * z - 0.5 / z).mean()
    lower = (draws < -epsilon * z - 0.5 / z).mean()
    assert abs(upper - np.exp(epsilon) * lower - delta) < 5e-4


@library
def test_rdp_is_never_below_pld_and_pld_never_below_the_exact_value():
    for kind, count in (("participation", 5), ("poisson", 5), ("poisson", 40)):
        pld = Mechanism(2.0, 1e-5, kind, 10, 100, "pld")
        rdp = dataclasses.replace(pld, accountant="rdp")
        assert pld.epsilon(count) <= rdp.epsilon(count)
        assert pld.epsilon(count) < pld.epsilon(count + 1)
    import dp_accounting  # noqa: PLC0415
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    theirs = PLDAccountant().compose(dp_accounting.GaussianDpEvent(4.0), 5).get_epsilon(1e-5)
    assert 0 <= theirs - Mechanism(4.0, 1e-5, "participation", 1, 1).epsilon(5) < 1e-3
    fixed = Mechanism(2.0, 1e-5, "without_replacement", 10, 100)
    assert fixed.method == "rdp" and fixed.epsilon(5) > Mechanism(
        2.0, 1e-5, "poisson", 10, 100, "rdp"
    ).epsilon(5)
    # Drawing everybody is no sampling: the Gaussian of a change by two bounds.
    everybody = dataclasses.replace(fixed, cohort=100)
    alone = Mechanism(1.0, 1e-5, "participation", 1, 1, "rdp")
    assert everybody.epsilon(3) == pytest.approx(alone.epsilon(3), rel=1e-3)


@pytest.mark.parametrize(
    "population, sampling, kind",
    [
        ({"cohort": 0}, "poisson", "participation"),
        ({"cohort": 5}, "poisson", "participation"),  # all of five
        ({"cohort": 3}, "without_replacement", "without_replacement"),
        ({"cohort": 3}, "poisson", "poisson approximation"),
        ({"cohort": 3, "sampling": "poisson"}, "without_replacement", "poisson"),
    ],
)
def test_the_assumption_is_that_of_the_sampling(population, sampling, kind):
    fed = SETTINGS["fed"] | {"aggregation": "uniform"}
    config = quick(fed=fed, population=population, privacy=PRIVATE | {"sampling": sampling})
    assert accounting.assumption(config) == kind and kind in accounting.ASSUMPTIONS


def private(**changes):
    fed = SETTINGS["fed"] | {"aggregation": "uniform", "rounds": changes.pop("rounds", 4)}
    return quick(fed=fed, population={"cohort": 0}, privacy=PRIVATE | changes)


def summary_costs(config):
    """Bytes that a client sends."""
    return sum(costs.communication(make_spec(config), 4, 2.0)["up"].values())


@pytest.mark.usefixtures("compiled_once")
def test_a_resumed_run_spends_the_same(tmp_path):
    steps = {"clip_quantile": 0.5, "clip_count_noise": 2.0, "top_k": 0.5, "quantize_bits": 8}
    config = private(**steps)
    with Experiment(config, tmp_path / "whole") as run:
        run.run()
        whole, bound = run.history, float(run.server.message["clip_norm"])
        summary = write_run(run)
    for _ in range(2):
        with Experiment(config, tmp_path / "parts", resume=True) as run:
            run.run(2)
            parts, end = run.history, float(run.server.message["clip_norm"])
    assert end == bound != 0.5  # the adaptive bound goes on, too
    for name in ("epsilon", "delta", "noise_multiplier", "clip_norm", "clipped", "update_norm"):
        assert [r[name] for r in whole] == [r[name] for r in parts], name
    spent = [r["epsilon"] for r in whole]
    assert spent == sorted(spent) and spent[-1] == gaussian_epsilon(1.0, 1e-5)  # 2 / sqrt(4)
    found = summary["run"]["privacy"]
    assert found["epsilon"] == spent[-1] and found["unit"] == "client"
    text = str(privacy_table(summary))
    assert f"{spent[-1]:.3g}" in text and "1e-05" in text and "client" in text
    assert privacy_table({"run": {}}) is None
    first, second = (final_state(tmp_path / name, config) for name in ("whole", "parts"))
    for a, b in zip(_leaves(first), _leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[2].unsent.any()  # what was held back is kept with the heads
    up = summary_costs(config)
    assert up == 8 / 32 * summary_costs(private())  # half, with positions, would be more
    assert summary_costs(private(top_k=0.1)) == pytest.approx(0.2 * summary_costs(private()))
    other = private(**steps | {"noise_multiplier": 3.0})
    with pytest.raises(Exception, match=r"privacy\.noise_multiplier"):
        Experiment(other, tmp_path / "parts", resume=True)


@pytest.mark.usefixtures("compiled_once")
def test_a_target_finds_the_noise_before_the_run(tmp_path):
    config = private(noise_multiplier=0.0, target_epsilon=3.0)
    with Experiment(config, tmp_path) as run:
        found = run.config.privacy.noise_multiplier
        run.run(1)
    assert gaussian_epsilon(found / 2, 1e-5) <= 3.0 < gaussian_epsilon(0.99 * found / 2, 1e-5)
    assert workdir.read_config(tmp_path)["privacy"]["noise_multiplier"] == found
    with Experiment(config, tmp_path, resume=True) as run:  # found again
        assert run.config.privacy.noise_multiplier == found and run.round == 1
    settled = resolve(workdir.read_config(tmp_path))
    with pytest.raises(ConfigError, match=r"12 rounds have epsilon .* above"):
        changed = dataclasses.replace(settled, fed=dataclasses.replace(settled.fed, rounds=12))
        Experiment(changed, tmp_path, resume=True)


def test_noise_of_a_production_cohort_is_marked():
    summary = {
        "run": {
            "rounds": 3,
            "privacy": {
                "epsilon": 1.5,
                "delta": 1e-6,
                "unit": "client",
                "noise_multiplier": 0.8,
                "assumption": "Poisson sampling",
                "production_cohort": 1000,
                "cohort": 10,
                "otherwise": {"epsilon": 2.5, "assumption": "another"},
                "local_epsilon": 80.0,
                "local_noise": 0.3,
            },
        }
    }
    text = str(privacy_table(summary))
    assert "1.5†" in text and "1,000 clients" in text and "2.5" in text and "80" in text


@pytest.mark.usefixtures("compiled_once")
def test_quarantined_clients_are_named_and_the_run_goes_on(tmp_path, capsys):
    def config(action, **hostile):
        return quick(
            fed=SETTINGS["fed"]
            | {"on_bad_update": action, "aggregator": "median", "aggregation": "uniform"},
            population={"cohort": 0, "dropout": 0.3},
            hostile={"attack": "nan", **hostile},
        )

    with Experiment(config("quarantine", clients=(1,)), tmp_path / "on") as run:
        rows = run.run()
        summary = write_run(run)["run"]
        assert np.isfinite(
            np.concatenate([np.ravel(x) for x in _leaves(run.server.backbone)])
        ).all()
    said = capsys.readouterr().out
    assert "messages: all differences of a round are held at once" in said
    assert {c for row in rows for c in row["quarantined_clients"]} == {1}
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert summary["hostile"]["clients"] == [1] and summary["quarantined"]["clients"] == [1]
    assert summary["dropped"] == sum(5 - row["clients"] for row in rows) > 0
    with (
        pytest.raises(FloatingPointError, match=r"difference of client 1 .*fed\.on_bad_update"),
        Experiment(config("stop", clients=(1,)), tmp_path / "off") as run,
    ):
        run.run()
    with (
        pytest.raises(FloatingPointError, match="every client is quarantined"),
        Experiment(config("quarantine", fraction=0.99), tmp_path / "all") as run,
    ):
        run.run()


def _leaves(tree):
    import jax  # noqa: PLC0415

    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_poisson_cohorts_are_independent_draws():
    settings = PopulationConfig(cohort=20, sampling="poisson")
    cohorts = sample_cohorts(100, 400, settings, seed=3)
    sizes = (cohorts >= 0).sum(1)
    assert abs(sizes.mean() - 20) < 1 and abs(sizes.var() - 16) < 4
    assert cohorts.shape[1] == sizes.max()
    counts = np.bincount(cohorts[cohorts >= 0], minlength=100)
    assert ((counts - 80) ** 2 / 64).sum() < 160  # chi-square of 100
    fewer = sample_cohorts(100, 10, settings, seed=3)
    assert all(np.array_equal(a[a >= 0], b[b >= 0]) for a, b in zip(fewer, cohorts, strict=False))


def test_drop_outs_are_drawn_anew_in_every_round():
    cohorts = sample_cohorts(50, 200, PopulationConfig(cohort=20), seed=1)
    left = drop_out(cohorts, 0.3, seed=1)
    assert drop_out(cohorts, 0.0, seed=1) is cohorts
    share = 1 - (left >= 0).sum() / (cohorts >= 0).sum()
    assert abs(share - 0.3) < 0.03 and len({tuple(r) for r in left}) > 190
    for row, old in zip(left, cohorts, strict=True):
        ids = row[row >= 0]
        assert np.isin(ids, old).all() and (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(drop_out(cohorts[:10], 0.3, seed=1), left[:10])


UNIFORM = {"aggregation": "uniform"}


@pytest.mark.parametrize(
    "change, match",
    [
        ({"privacy": {"noise_multiplier": 1.0}}, "fed.aggregation is 'images'"),
        ({"fed": UNIFORM, "privacy": {"noise_multiplier": 1.0}}, "privacy.clip_norm is 0"),
        ({"fed": {"aggregator": "median"}}, "fed.aggregation is 'images'.*median"),
        ({"fed": {"aggregator": "norm_clip"}}, "fed.clip_radius is 0"),
        ({"fed": {"aggregator": "average"}}, "fed.aggregator is 'average'"),
        ({"fed": UNIFORM | {"aggregator": "median"}, "privacy": PRIVATE}, "is about a sum"),
        ({"fed": {"assumed_hostile": 0.5}}, "fed.assumed_hostile"),
        ({"population": {"dropout": 1.0}}, "population.dropout"),
        ({"hostile": {"clients": (99,)}}, "hostile.clients has 99"),
        ({"hostile": {"clients": (1,), "fraction": 0.1}}, "both set"),
        ({"privacy": {"quantize_bits": 1}}, "privacy.quantize_bits"),
        ({"privacy": {"delta": 0.0}}, "privacy.delta"),
        (
            {"privacy": {"clip_norm": 1.0, "clip_quantile": 0.5, "local_noise": 1.0}},
            "without noise",
        ),
        ({"method": {"name": "fedface"}, "privacy": {"clip_norm": 1.0}}, "class embeddings"),
        ({"method": {"name": "local"}, "privacy": {"clip_norm": 1.0}}, "sends nothing"),
        ({"fed": UNIFORM, "privacy": PRIVATE | {"production_cohort": 3}}, "production_cohort is 3"),
        (
            {"fed": UNIFORM, "privacy": PRIVATE | {"clip_quantile": 0.5, "clip_count_noise": 1.0}},
            "clip_count_noise is 1",
        ),
        (
            {
                "fed": UNIFORM,
                "population": {"cohort": 3, "sampling": "weighted"},
                "privacy": PRIVATE,
            },
            "population.sampling is 'weighted'",
        ),
        (
            {
                "fed": UNIFORM,
                "privacy": {"clip_norm": 1.0, "secure_aggregation": True, "local_noise": 1.0},
            },
            "no bound",
        ),
    ],
)
def test_settings_that_contradict_each_other(change, match):
    with pytest.raises(ConfigError, match=match):
        resolve(change)


def test_a_missing_package_is_one_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match="pip install 'dp-accounting"):
        Mechanism(1.7, 1e-5, "poisson", 10, 100).epsilon(3)
