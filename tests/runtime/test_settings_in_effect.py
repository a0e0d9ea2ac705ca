"""Settings that leave a run another one than its user thinks are said or refused."""

import shutil

import jax
import numpy as np
import pytest
from quick import SETTINGS, cohort, compiled_once, quick, rounds_only, same  # noqa: F401
from small import write_run

from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.experiment import Experiment
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.remarks import first_remark, remark
from fedfr_jax.runtime.simulation import make_spec

pytestmark = pytest.mark.usefixtures("compiled_once")
ROW = {
    "kind": "round",
    "round": 2,
    "public_images": 200,
    "hard_negatives_mean": 190.0,
    "hard_negatives_min": 100,
    "hard_negatives_max": 200,
    "hard_threshold": 0.4,
}


def test_what_hard_negatives_say_about_their_threshold():
    assert "raise fed.hard_threshold" in remark(ROW) and "fed.hard_threshold=0.4" in remark(ROW)
    assert "190 of 200" in remark(ROW) and "95 %" in remark(ROW)
    assert not remark(ROW | {"hard_negatives_mean": 180.0})
    none = ROW | {"hard_negatives_mean": 0.0, "hard_negatives_max": 0}
    assert "lower fed.hard_threshold" in remark(none)
    assert "fed.hard_threshold=0 " in remark(ROW | {"hard_threshold": 0.0})
    without = {k: v for k, v in ROW.items() if k != "hard_threshold"}  # all, by choice
    assert not remark(without)
    assert not remark({"kind": "round", "round": 1, "clients": 0, "public_images": 200})
    assert first_remark([without, ROW | {"round": 5}, none]).startswith("round 5")


@pytest.mark.parametrize("threshold, advice", [(-1.0, "raise"), (1.0, "lower"), (0.9, "")])
def test_a_threshold_without_effect_is_said_once(threshold, advice, tmp_path, caplog):
    config = quick(
        fed=SETTINGS["fed"] | {"public_data": "hard", "hard_threshold": threshold, "rounds": 3}
    )
    with Experiment(config, tmp_path) as run:
        run.run()
        summary = write_run(run)
    said = [r.getMessage() for r in caplog.records if "hard_threshold" in r.getMessage()]
    rows = [r for r in workdir.read_metrics(tmp_path) if r["kind"] == "round"]
    if not advice:
        assert 0 < rows[0]["hard_negatives_mean"] < 0.9 * rows[0]["public_images"]
        assert not said and "remark" not in summary["run"]
        return
    assert len(said) == 1 and said[0].startswith("round 1") and f"{advice} fed.hard" in said[0]
    assert summary["run"]["remark"] == said[0]


def test_fine_tuning_follows_all_rounds(tmp_path):
    def settings(name, rounds=1):
        return quick(method={"name": name}, fed=SETTINGS["fed"] | {"rounds": rounds})

    server, *_ = rounds_only(tmp_path / "fedavg", config=settings("fedavg"))
    tuned, clients, _ = rounds_only(tmp_path / "tuned", config=settings("finetune"))
    assert int(tuned.round) == 2 and settings("finetune").fed.rounds == 1
    for a, b in zip(*map(jax.tree.leaves, (server.backbone, tuned.backbone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    steps = [r["images"] / r["clients"] for r in workdir.read_metrics(tmp_path / "tuned")]
    assert steps[1] == 5 * steps[0]  # method.finetune.epochs
    last = np.isin(clients, cohort(settings("finetune"), 1))
    assert last.sum() == SETTINGS["population"]["cohort"]
    for other in (0, 2):
        with pytest.raises(InputError, match=r"fed\.rounds.*must follow all others"):
            Experiment(settings("finetune", other), tmp_path / "tuned", resume=True)
    assert workdir.read_config(tmp_path / "tuned")["fed"]["rounds"] == 1
    rounds_only(tmp_path / "more", config=settings("fedavg", 2))
    rounds_only(tmp_path / "more", config=settings("fedavg", 3), resume=True)


def test_the_classifier_beside_the_weights_is_used_where_people_are_the_same(tmp_path, caplog):
    trained = quick(pretrain={"epochs": 1, "batch_size": 8})
    with Experiment(trained, tmp_path / "first") as run:
        start = jax.device_get(run.server)

    def began(name, weights="first", **changes):
        config = quick(model=SETTINGS["model"] | {"weights": str(tmp_path / weights)}, **changes)
        with Experiment(config, tmp_path / name, resume=True) as run:
            return jax.device_get(run.server)

    for name in ("second", "second"):  # new, and taken up
        assert same(began(name).public_embeddings, start.public_embeddings)
    assert not caplog.records
    shutil.rmtree(tmp_path / "second" / "pretrained" / "public_embeddings")
    with pytest.raises(InputError, match="public class embeddings"):
        began("second")
    other = SETTINGS["data"] | {"seed": 1}
    assert not same(began("others", data=other).public_embeddings, start.public_embeddings)
    assert "not of the 4 public people" in caplog.text
    shutil.copytree(tmp_path / "first" / "pretrained", tmp_path / "copy" / "pretrained")
    assert same(began("third", "copy").public_embeddings, start.public_embeddings)
    for path in (tmp_path / "first" / "pretrained" / "public_embeddings").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match="public_embeddings"):
        began("fourth")


@pytest.mark.parametrize(
    "name, groups",
    [
        ("fed.batch_size", {"fed": SETTINGS["fed"] | {"batch_size": 1}}),
        ("pretrain.batch_size", {"pretrain": {"epochs": 1, "batch_size": 1}}),
    ],
)
def test_batch_norm_of_a_single_image_is_refused(name, groups, tmp_path):
    with pytest.raises(ConfigError, match=f"^{name} is 1, but tiny_norm normalizes"):
        Experiment(quick(model={"name": "tiny_norm", "embedding": 8}, **groups), tmp_path / "x")
    assert make_spec(quick(**groups))  # without batch norm all is well


def test_a_partial_batch_needs_batch_norm_to_be_frozen(tmp_path):
    norm, partial = {"name": "tiny_norm", "embedding": 8}, {"partial_batch": True}
    with pytest.raises(ConfigError, match=r"^fed\.partial_batch is set, but tiny_norm normalizes"):
        Experiment(quick(model=norm, fed=partial), tmp_path / "x")
    assert make_spec(quick(model=norm | {"batch_norm": "frozen"}, fed=partial))
