"""Nothing is lost, and nothing silently wrong: what a run does where something goes wrong."""

import json
import os
import shutil

import numpy as np
import pytest
from quick import SETTINGS, cohort, compiled_once, quick, rounds_only, same, state  # noqa: F401
from small import write_run

from fedfr_jax.data.types import ImageSource
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.experiment import Experiment
from fedfr_jax.reporting.reevaluation import evaluate
from fedfr_jax.runtime import workdir

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state after an uninterrupted run of two of five clients, without evaluations."""
    return rounds_only(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def two_kept(tmp_path_factory):
    """A folder with rounds 3 and 4 kept, the states of both."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    with Experiment(quick(), folder) as run:
        run.run(3)
    older = state(folder, quick())
    return folder, older, rounds_only(folder, resume=True)


@pytest.mark.parametrize("every", [1, 3])
def test_evaluating_between_rounds_changes_nothing(every, whole, tmp_path):
    found = rounds_only(tmp_path, eval=SETTINGS["eval"] | {"every": every})
    assert same(found, whole)
    rows = [r for r in workdir.read_metrics(tmp_path) if r["kind"] == "evaluation"]
    assert {r["round"] for r in rows} == set(range(0, 4, every))


@pytest.mark.parametrize("every", [2, 4])
def test_rare_checkpoints_change_nothing(every, whole, tmp_path):
    assert same(rounds_only(tmp_path, checkpoint={"every": every}), whole)


def test_a_round_taken_up_again_changes_nothing(whole, two_kept):
    assert same(two_kept[2], whole)


def damage(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 16
    path.write_bytes(content)


def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def data_files(folder):
    return [p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"]


def test_a_damaged_checkpoint_falls_back_with_its_heads(two_kept, tmp_path, caplog):
    folder, older, newest = two_kept
    copy = copied(folder, tmp_path)
    for path in data_files(copy / "checkpoints" / "4"):
        damage(path)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert same(state(copy, quick()), older)
    assert "checkpoint of round 4 cannot be used" in caplog.text
    assert "evaluating round 3" in caplog.text
    assert before == {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    caplog.clear()
    assert same(rounds_only(copy, resume=True), newest)  # round 4 was done again
    assert "going on from round 3" in caplog.text
    assert (copy / "set-aside" / "checkpoint-4").is_dir()


def test_a_removed_checkpoint_is_said(two_kept, tmp_path, caplog):
    folder, _, newest = two_kept
    copy = copied(folder, tmp_path)
    shutil.rmtree(copy / "checkpoints" / "4")
    assert same(rounds_only(copy, resume=True), newest)
    assert "the checkpoint of round 4 is gone" in caplog.text


def test_damaged_rows_of_the_newest_round_fall_back(two_kept, tmp_path, caplog):
    folder, older, newest = two_kept
    copy = copied(folder, tmp_path)
    client = cohort(quick(), 3)[0]
    row = newest[2].class_embeddings[list(newest[1]).index(client)]
    rows = copy / "heads" / "process-0-of-1.rows"
    at = rows.read_bytes().find(np.ascontiguousarray(row).tobytes())
    assert at >= 0
    damage(rows, (at + 1) / len(rows.read_bytes()))
    assert same(state(copy, quick()), older)
    assert f"the row of client {client}, written in round 4, is damaged" in caplog.text


@pytest.mark.parametrize(
    "lost, message",
    [
        ("heads", "holds no clients' heads|state of no round, not of round 4"),
        ("heads/process-0-of-1.json", "process-0-of-1.json is missing|holds no clients' heads"),
        ("heads/process-0-of-1.rows", "rows of round 3|rows of round 4"),
        ("checkpoints", "no checkpoint of the server"),
        ("pretrained", "pretrained/backbone (is missing|does not exist)"),
        ("fingerprint.json", "fingerprint.json is missing"),
        ("config.json", "config.json"),
    ],
)
def test_what_is_lost_is_refused(lost, message, two_kept, tmp_path):
    copy = copied(two_kept[0], tmp_path)
    path = copy / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for attempt in (lambda: rounds_only(copy, resume=True), lambda: evaluate(copy)):
        with pytest.raises(InputError, match=message):
            attempt()


def test_a_store_behind_the_server_is_refused(two_kept, tmp_path):
    with Experiment(quick(), tmp_path / "old") as run:
        run.run(1)
    copy = copied(two_kept[0], tmp_path)
    shutil.rmtree(copy / "heads")
    shutil.copytree(tmp_path / "old" / "heads", copy / "heads")
    for attempt in (lambda: rounds_only(copy, resume=True), lambda: evaluate(copy)):
        with pytest.raises(InputError, match="state of round 1, not of round 4"):
            attempt()


@pytest.mark.parametrize("name", ["config.json", "fingerprint.json", "pretrained"])
def test_damage_of_other_files_is_refused(name, two_kept, tmp_path):
    copy = copied(two_kept[0], tmp_path)
    for path in data_files(copy / name) or [copy / name]:
        damage(path)
    for attempt in (lambda: rounds_only(copy, resume=True), lambda: evaluate(copy)):
        with pytest.raises(InputError, match=f"{name}.* (damaged|not valid JSON|is not text)"):
            attempt()


def test_a_damaged_split_is_made_again_where_the_data_vouch_for_it(two_kept, tmp_path, caplog):
    folder, _, newest = two_kept
    copy = copied(folder, tmp_path)
    (copy / "split.npz").write_bytes((copy / "split.npz").read_bytes()[:-200])
    assert same(rounds_only(copy, resume=True), newest)
    assert "the data give the same split again" in caplog.text
    assert (copy / "split.npz").read_bytes() == (folder / "split.npz").read_bytes()


def people(root, names, images=6):
    """A folder source's files: images of noise around a colour of each person."""
    from PIL import Image  # noqa: PLC0415

    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        face = rng.integers(0, 255, (16, 16, 3))
        for k in range(images):
            noisy = np.clip(face + rng.integers(-25, 25, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / name / f"{k}.png")


FOLDER = {"source": "folder"}


@pytest.fixture(scope="module")
def of_a_folder(tmp_path_factory):
    """A run of one round on a folder of people: (data, work directory)."""
    root = tmp_path_factory.mktemp("people")
    people(root / "data", [f"p{i:02d}" for i in range(20)])
    rounds_only(root / "run", fed={"rounds": 1}, data=FOLDER | {"root": str(root / "data")})
    return root


def moved(of_a_folder, tmp_path):
    shutil.copytree(of_a_folder, tmp_path / "all")
    return tmp_path / "all" / "data", tmp_path / "all" / "run"


def resumed(run, data):
    return rounds_only(run, resume=True, fed={"rounds": 2}, data=FOLDER | {"root": str(data)})


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda data: shutil.move(data / "p13", data / "aaa"), "people's names or their order"),
        (lambda data: shutil.rmtree(data / "p13"), r"20 identities then, 19 now"),
        (lambda data: (data / "p13" / "3.png").unlink(), r"120 images then, 119 now"),
        (
            lambda data: [
                shutil.move(data / a, data / b)
                for a, b in (("p01", "x"), ("p02", "p01"), ("x", "p02"))
            ],
            "",
        ),
    ],
)
def test_data_that_changed_are_refused(change, what, of_a_folder, tmp_path):
    data, run = moved(of_a_folder, tmp_path)
    change(data)
    if not what:  # the same names and counts: other images, which is allowed
        resumed(run, data)
        return
    for attempt in (lambda: resumed(run, data), lambda: evaluate(run, data={"root": str(data)})):
        with pytest.raises(InputError, match=f"begun with other data.*{what}"):
            attempt()


def test_data_may_move_and_an_image_be_replaced(of_a_folder, tmp_path):
    data, run = moved(of_a_folder, tmp_path)
    data = data.rename(tmp_path / "elsewhere")
    shutil.copy(data / "p03" / "0.png", data / "p04" / "0.png")
    evaluate(run, data={"root": str(data)})
    resumed(run, data)
    [change] = [r for r in workdir.read_metrics(run) if r["kind"] == "change"]
    assert set(change["settings"]) == {"data.root", "fed.rounds"}
    with pytest.raises(InputError, match=r"data\.image_size"):
        evaluate(run, data={"image_size": 20})


@pytest.mark.parametrize(
    "kind, text, other",
    [
        ("schedule", "0 1\n2 3\n", "0 1\n2 4\n"),
        ("availability", [[True] * 5], [[True] * 4 + [False]]),
    ],
)
def test_an_edited_schedule_is_refused(kind, text, other, tmp_path):
    path = tmp_path / ("plan.txt" if kind == "schedule" else "plan.npy")

    def write(content):
        path.write_text(content) if kind == "schedule" else np.save(path, np.array(content))

    def go(rounds, resume):
        population = {kind: str(path)} | (
            {"sampling": "schedule", "cohort": 0} if kind == "schedule" else {}
        )
        return rounds_only(tmp_path / "run", resume, population=population, fed={"rounds": rounds})

    write(text)
    go(1, False)
    write(other)
    with pytest.raises(InputError, match=f"population.{kind}"):
        go(2, True)
    write(text)
    go(2, True)


def test_names_of_people_are_digested_without_ambiguity():
    from fedfr_jax.runtime.fingerprints import _names  # noqa: PLC0415

    def digest(*names):
        return _names(ImageSource("x", np.zeros(1, np.int32), 16, lambda n: n, names))

    assert len({digest("a", "b"), digest("b", "a"), digest("ab"), digest("a"), digest("")}) == 5


def test_one_process_at_a_time(tmp_path):
    with Experiment(quick(fed={"rounds": 1}), tmp_path) as run:
        note = json.loads((tmp_path / "lock").read_text())
        assert note["pid"] == os.getpid()
        for attempt in (
            lambda: Experiment(quick(), tmp_path, resume=True),
            lambda: evaluate(tmp_path),
        ):
            with pytest.raises(InputError, match=f"in use by process {os.getpid()} on "):
                attempt()
        run.run()
    assert (tmp_path / "lock").read_text() == ""
    # Left behind by a process that was killed: the system has given it free.
    (tmp_path / "lock").write_text(json.dumps(note))
    with Experiment(quick(), tmp_path, resume=True) as run:
        assert run.round == 1
    (tmp_path / "lock").write_text(json.dumps(note | {"host": "elsewhere"}))
    with pytest.raises(InputError, match=r"on elsewhere\. If that process is gone, delete .*lock"):
        Experiment(quick(), tmp_path, resume=True)
    (tmp_path / "lock").write_text("{")
    Experiment(quick(), tmp_path, resume=True).close()


@pytest.mark.parametrize(
    "what, bad, good",
    [
        ("client", {"weight_decay": 1e30}, {}),
        ("client", {"lr": 1e30}, {}),
        (
            "server's model",
            {"server_optimizer": "momentum", "server_lr": 1e39},
            {"server_optimizer": "momentum", "server_lr": 1.0},
        ),
    ],
)
def test_what_is_not_finite_is_not_saved(what, bad, good, tmp_path):
    with (
        Experiment(quick(fed=bad), tmp_path / "run") as run,
        pytest.raises(FloatingPointError, match=f"round 1: .*{what}.* not finite.*--resume"),
    ):
        run.run()
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))
    # The advice works.
    assert same(
        rounds_only(tmp_path / "run", resume=True, fed=good),
        rounds_only(tmp_path / "new", fed=good),
    )


def test_the_rate_may_change_after_some_rounds_and_is_recorded(two_kept, tmp_path):
    copy = copied(two_kept[0], tmp_path)
    other = rounds_only(copy, resume=True, fed={"rounds": 5, "lr": 0.01})
    assert int(other[0].round) == 5
    [change] = [r for r in workdir.read_metrics(copy) if r["kind"] == "change"]
    assert change == {
        "kind": "change",
        "round": 4,
        "settings": {"fed.lr": [0.05, 0.01], "fed.rounds": [4, 5]},
    }
    with Experiment(quick(fed={"rounds": 5, "lr": 0.01}), copy, resume=True) as run:
        assert write_run(run)["run"]["changes"][0]["settings"]["fed.lr"] == [0.05, 0.01]
    with pytest.raises(InputError, match=r"fed\.batch_size: 4 -> 2"):
        rounds_only(copy, resume=True, fed={"rounds": 5, "lr": 0.01, "batch_size": 2})


@pytest.mark.parametrize(
    "name", ["fed.momentum", "pretrain.momentum", "fed.server_momentum", "fed.server_beta2"]
)
def test_momenta_that_forget_nothing_are_refused(name):
    group, key = name.split(".")
    with pytest.raises(ConfigError, match=f"{name} is 1.0; it must be below 1"):
        quick(**{group: {key: 1.0}})


def scheduled(tmp_path, text, **changes):
    path = tmp_path / "plan.txt"
    path.write_text(text)
    return dict(population={"sampling": "schedule", "schedule": str(path), "cohort": 0}, **changes)


@pytest.mark.parametrize("optimizer", ["average", "momentum"])
def test_a_round_without_anybody_changes_nothing(optimizer, tmp_path):
    fed = {"server_optimizer": optimizer}
    plan = scheduled(tmp_path, "0 1\n[]\n0 1\n2 3\n", eval=SETTINGS["eval"] | {"every": 1})
    one = rounds_only(tmp_path / "one", **plan, fed=fed | {"rounds": 1})
    two = rounds_only(tmp_path / "two", **plan, fed=fed | {"rounds": 2})
    assert int(two[0].round) == 2
    assert same(two[0].replace(round=one[0].round), one[0]) and same(two[1:], one[1:])
    rows = [r for r in workdir.read_metrics(tmp_path / "two") if r["kind"] == "round"]
    assert [r["clients"] for r in rows] == [2, 0] and rows[1]["images"] == 0
    four = rounds_only(tmp_path / "four", **plan, fed=fed | {"rounds": 4})
    assert same(rounds_only(tmp_path / "two", True, **plan, fed=fed | {"rounds": 4}), four)


@pytest.mark.slow
def test_a_run_without_anybody_at_all(tmp_path):
    with Experiment(quick(**scheduled(tmp_path, "[]\n[]\n")), tmp_path / "run") as run:
        run.run()
        assert run.evaluate()["run"]["rounds"] == 4
    evaluate(tmp_path / "run")


def test_a_half_line_of_the_metrics_hinders_nobody(two_kept, tmp_path):
    copy = copied(two_kept[0], tmp_path)
    rows = workdir.read_metrics(copy)
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"kind": "evaluation", "rou')
    evaluate(copy)
    found = workdir.read_metrics(copy)
    assert found[: len(rows)] == rows and len(found) > len(rows)
    rounds_only(copy, resume=True)
    assert evaluate(copy)["run"]["rounds"] == 4
