"""The work directory and the progress display."""

from __future__ import annotations

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from fedfr_jax.config import Config, to_dict
from fedfr_jax.errors import DamagedError, InputError
from fedfr_jax.runtime import progress, workdir
from fedfr_jax.runtime.changes import changed_settings, changes_of_run
from fedfr_jax.runtime.json_file import plain

CONFIG = {"seed": 0, "fed": {"rounds": 3, "lr": 0.1}, "data": {"sets": ("a", "b")}}


def make_rows(rounds: int) -> list[dict]:
    rows = [
        {"kind": "pretrain", "epoch": e, "step": 2 * e + s, "loss": 5.0 - e}
        for e in range(3)
        for s in range(2)
    ]
    for r in range(rounds + 1):
        if r:
            rows.append({"kind": "round", "round": r, "loss": 1.0 / r})
        rows.append({"kind": "evaluation", "round": r, "model": "global", "personal/rank1": 0.5})
    return rows


def read_events(folder) -> list[event_pb2.Event]:
    """Events of all files of one TensorBoard run, in the order they were written."""
    events = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def test_rows_read_back_in_order_with_finite_numbers(tmp_path):
    with workdir.open_run(tmp_path / "new" / "run", CONFIG) as run:
        run.append(
            {
                "kind": "round",
                "round": np.int64(1),
                "loss": jnp.float32(0.5),
                "bf": jnp.bfloat16(0.25),
                "bad": float("nan"),
                "worse": np.float32("inf"),
                "per_client": np.array([1.0, np.nan]),
                "device": "cpu",
                "flag": np.True_,
            }
        )
        run.append({"kind": "pretrain", "step": 1, "loss": 2})
        assert len(workdir.read_metrics(run.workdir)) == 2  # without closing
    first, second = workdir.read_metrics(tmp_path / "new" / "run")
    assert first == {
        "kind": "round",
        "round": 1,
        "loss": 0.5,
        "bf": 0.25,
        "bad": None,
        "worse": None,
        "per_client": [1.0, None],
        "device": "cpu",
        "flag": True,
    }
    assert second["loss"] == 2
    assert workdir.read_config(tmp_path / "new" / "run")["data"] == {"sets": ["a", "b"]}


@pytest.mark.parametrize(
    "row, lacking",
    [
        ({"round": 1}, "kind"),
        ({"kind": "round"}, "round"),
        ({"kind": "pretrain"}, "step"),
        ({"kind": "evaluation", "round": 1}, "model"),
    ],
)
def test_rows_that_cannot_be_placed_are_refused(tmp_path, row, lacking):
    with workdir.open_run(tmp_path, CONFIG) as run, pytest.raises(InputError, match=lacking):
        run.append(row)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_values_without_json_form_are_refused():
    with pytest.raises(InputError, match="object"):
        plain({"a": [object()]})
    with pytest.raises(InputError, match="complex"):
        plain(np.complex64(1))


def test_an_existing_run_is_not_written_over(tmp_path):
    workdir.open_run(tmp_path, CONFIG).close()
    with pytest.raises(InputError, match="--resume") as error:
        workdir.open_run(tmp_path, CONFIG)
    assert str(tmp_path) in str(error.value)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        workdir.open_run(file / "x", CONFIG)


def test_a_folder_without_a_run_can_be_used_and_resumed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    workdir.open_run(tmp_path, CONFIG, resume=True).close()
    assert workdir.holds_run(tmp_path)


def test_resume_keeps_settings_but_more_rounds_are_fine(tmp_path):
    workdir.open_run(tmp_path, CONFIG).close()
    more = CONFIG | {"fed": {"rounds": 9, "lr": 0.1}}
    workdir.open_run(tmp_path, more, resume=True).close()
    assert workdir.read_config(tmp_path)["fed"]["rounds"] == 9
    other = CONFIG | {"fed": {"rounds": 9, "lr": 0.1, "batch_size": 2}}
    with pytest.raises(InputError, match=r"fed\.batch_size: None -> 2"):
        workdir.open_run(tmp_path, other, resume=True)
    assert "batch_size" not in workdir.read_config(tmp_path)["fed"]
    workdir.open_run(tmp_path, other, resume=True, may_change=("fed.",)).close()


def test_resume_leaves_no_row_twice(tmp_path):
    with workdir.open_run(tmp_path, CONFIG) as run:
        for row in make_rows(5):
            run.append(row)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "round", "round": 6, "lo')  # killed while writing
    with workdir.open_run(tmp_path, CONFIG, resume=True) as run:
        assert run.truncate_after(2) == 6
        for row in make_rows(5):
            if row["kind"] != "pretrain" and row["round"] > 2:
                run.append(row)
    assert workdir.read_metrics(tmp_path) == make_rows(5)


def test_truncation_in_the_middle_of_pretraining(tmp_path):
    with workdir.open_run(tmp_path, CONFIG) as run:
        assert run.truncate_after(-1) == 0
        for row in make_rows(1):
            run.append(row)
        run.truncate_after(-1, pretrain_epoch=1)
    assert workdir.read_metrics(tmp_path) == make_rows(0)[:4]


def test_event_files_hold_the_rows_and_purge_on_resume(tmp_path):
    with workdir.open_run(tmp_path, CONFIG) as run:
        for row in make_rows(4):
            run.append(row)
    with workdir.open_run(tmp_path, CONFIG, resume=True) as run:
        run.truncate_after(2)
        run.append({"kind": "round", "round": 3, "loss": 7.0})
        run.append({"kind": "evaluation", "round": 3, "model": "global", "personal/rank1": 0.9})
    board = tmp_path / "tensorboard"
    assert sorted(path.name for path in board.iterdir()) == [
        "evaluation-global",
        "pretrain",
        "round",
    ]
    assert len(list((board / "pretrain").iterdir())) == 1
    events = read_events(board / "round")
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
    ]
    assert scalars[:2] == [(1, "round/loss", 1.0), (2, "round/loss", 0.5)]
    assert scalars[-1] == (3, "round/loss", 7.0)
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [3]
    tags = {
        value.tag
        for event in read_events(board / "evaluation-global")
        for value in event.summary.value
    }
    assert tags == {"personal/rank1"}


@pytest.mark.parametrize(
    "reader, name",
    [
        (workdir.read_config, "config.json"),
        (workdir.read_metrics, "metrics.jsonl"),
        (workdir.read_summary, "summary.json"),
        (workdir.read_evaluation, "evaluation.npz"),
    ],
)
def test_missing_and_corrupt_files_are_named(tmp_path, reader, name):
    with pytest.raises(InputError, match=name):
        reader(tmp_path)
    (tmp_path / name).write_bytes(b"[1, 2\n\xff\xfe\n")
    with pytest.raises(InputError, match=name):
        reader(tmp_path)


def test_corrupt_rows_are_named_by_line(tmp_path):
    for bad in ('{"a": ', "3"):
        (tmp_path / "metrics.jsonl").write_text('{"kind": "x"}\n' + bad + '\n{"kind": "y"}\n')
        with pytest.raises(InputError, match="line 2"):
            workdir.read_metrics(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="list"):
        workdir.read_config(tmp_path)


def test_summary_round_trip_and_no_half_written_file(tmp_path):
    summary = {"run": {"seed": 0, "seconds": {"rounds": 1.5}}, "models": {"global": {"x": [1, 2]}}}
    with workdir.open_run(tmp_path, CONFIG) as run:
        run.write_summary(summary)
        with pytest.raises(InputError):
            run.write_summary({"a": object()})
        assert workdir.read_summary(tmp_path) == summary
    text = (tmp_path / "summary.json").read_text()
    for damaged in (text.replace("1.5", "1.4"), text.replace('"check"', '"chuck"'), "{}"):
        (tmp_path / "summary.json").write_text(damaged)
        with pytest.raises(DamagedError, match=r"summary\.json is damaged .* evaluate"):
            workdir.read_summary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "summary.json"}


def test_failed_writes_keep_the_old_file(tmp_path):
    workdir.write_evaluation(tmp_path, rocs={}, per_client={"m": {"global": np.ones(2)}})
    with pytest.raises(InputError, match="m/global"):
        workdir.write_evaluation(
            tmp_path, rocs={}, per_client={"m": {"global": np.array([None, object()])}}
        )
    np.testing.assert_array_equal(
        workdir.read_evaluation(tmp_path)["per_client"]["m"]["global"], [1, 1]
    )


def test_evaluation_round_trip_with_slashes_in_names(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    parts = {
        "rocs": {"sets/lfw.bin": {"a/b %": (np.array([0.1, 1.0]), np.array([0.5, 1.0]))}},
        "per_client": {"verification_tar@0.001": {"global": np.array([0.5, np.nan])}},
        "faces": None,
        "hard_negatives": [
            {"client": 3, "local_image": image, "public_image": image, "cosine": np.float32(0.5)}
        ]
        * 12,
        "mistakes": [
            {
                "kind": "false accept",
                "model": "global",
                "client": 1,
                "image_a": image,
                "image_b": image,
                "score": 0.5,
                "threshold": 0.25,
            }
        ],
    }
    workdir.write_evaluation(tmp_path, **parts)
    found = workdir.read_evaluation(tmp_path)
    far, tar = found["rocs"]["sets/lfw.bin"]["a/b %"]
    np.testing.assert_array_equal(far, [0.1, 1.0])
    np.testing.assert_array_equal(tar, [0.5, 1.0])
    assert found["faces"] is None and len(found["hard_negatives"]) == 12
    assert found["hard_negatives"][11]["cosine"] == 0.5
    np.testing.assert_array_equal(found["mistakes"][0].pop("image_b"), image)
    assert found["mistakes"][0]["kind"] == "false accept"
    assert isinstance(found["mistakes"][0]["client"], int)


def test_a_setting_that_a_run_does_not_know_counts_as_its_default():
    new = to_dict(Config())
    old = {**new, "fed": {k: v for k, v in new["fed"].items() if k != "partial_batch"}}
    assert changes_of_run(old, new) == {}
    set_now = {**new, "fed": new["fed"] | {"partial_batch": True}}
    assert changes_of_run(old, set_now) == {"fed.partial_batch": (None, True)}


def test_changed_settings_are_named_by_their_path():
    assert changed_settings(CONFIG, json.loads(json.dumps(CONFIG))) == {}
    assert changed_settings(CONFIG, {"seed": 1, "fed": {"rounds": 3, "lr": 0.1}}) == {
        "seed": (0, 1),
        "data.sets": (["a", "b"], None),
    }


# ------------------------------------------------------------------ progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_now_and_then_and_at_the_end():
    out, clock = io.StringIO(), Clock()
    with progress.track("pretraining", 100, "step", stream=out, clock=clock) as bar:
        clock.now += 60  # compilation
        for _ in range(100):
            bar.update(1, images=32, loss=jnp.float32(3.14159))
            clock.now += 0.25
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[1].startswith("pretraining: 21/100 step, 20 s left, 128 images/s, loss 3.142")
    assert lines[-1] == "pretraining: 100/100 step, in 1 min 25 s, 128 images/s, loss 3.142"
    assert "\x1b" not in out.getvalue()


def test_compilation_is_left_out_of_the_time_left():
    clock = Clock()
    with progress.track("x", 11, stream=io.StringIO(), clock=clock) as bar:
        clock.now += 500
        bar.update()
        assert bar.seconds_left() is None and bar.rates() is None
        clock.now += 2
        bar.update(images=10)
        assert bar.seconds_left() == pytest.approx(18)
        assert bar.rates() == pytest.approx((0.5, 5.0))


def test_rates_follow_the_last_half_minute():
    clock = Clock()
    with progress.track("x", None, stream=io.StringIO(), clock=clock) as bar:
        for seconds in [1.0] * 50 + [0.1] * 400:
            clock.now += seconds
            bar.update(images=1)
        assert bar.rates()[1] == pytest.approx(10.0, rel=0.05)
        assert bar.seconds_left() is None


def test_values_are_fetched_only_when_a_line_is_drawn():
    class Lazy:
        fetched = 0

        def __array__(self, dtype=None, copy=None):
            Lazy.fetched += 1
            return np.asarray(1.0)

    clock = Clock()
    with progress.track("x", 1000, stream=io.StringIO(), clock=clock) as bar:
        for _ in range(900):
            clock.now += 0.01
            bar.update(loss=Lazy())
    assert Lazy.fetched == 2


def test_an_interrupted_phase_says_so_and_inner_bars_leave_nothing():
    out = io.StringIO()
    with (
        pytest.raises(KeyError),
        progress.track("rounds", 5, "round", stream=out, clock=lambda: 7.0) as bar,
    ):
        bar.update(2)
        raise KeyError
    assert out.getvalue() == "rounds: 2/5 round, 0.0 s so far, stopped\n"
    out = io.StringIO()
    with progress.track("inner", 5, stream=out, keep=False) as bar:
        bar.update(5)
    assert out.getvalue() == ""


def test_a_long_silence_shows_the_time_so_far():
    out, clock = io.StringIO(), Clock()
    with progress.track("rounds", 3, "round", stream=out, clock=clock) as bar:
        for seconds in (3.0, 1.5, 9.0, 1.5, 5.0):  # looked at after 3, 4.5, 13.5, 15 and 20
            clock.now += seconds
            bar.show_when_silent()
    assert out.getvalue().splitlines() == [
        "rounds: 0/3 round, 4.5 s so far",
        "rounds: 0/3 round, 15 s so far",
        "rounds: 0/3 round, in 20 s",
    ]
    out = io.StringIO()
    with progress.track("reading images", None, "", stream=out, clock=clock, keep=False) as bar:
        clock.now += 5
        bar.show_when_silent()
    assert out.getvalue() == "reading images: 5.0 s so far\n"


def test_a_bar_in_a_notebook_changes_in_place(monkeypatch):
    shown = []

    class Cell:
        def update(self, html):
            shown.append(html.data)

    def display(html, display_id):
        shown.append(html.data)
        return Cell()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    clock = Clock()
    with progress.track("rounds <x>", 4, "round", clock=clock) as bar:
        clock.now += 1
        bar.update(2)
    assert shown[0].startswith('<progress value="0" max="4">')
    assert shown[1].startswith('<progress value="2" max="4"></progress> rounds &lt;x&gt;: 2/4 ')
    assert "in 1.0 s" in shown[2] and len(shown) == 3
    with progress.track("inner", 4, clock=clock, keep=False):
        pass
    assert shown[-1] == ""


def test_live_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    out = Terminal()
    with progress.track("rounds [x]", 4, "round", stream=out) as outer:
        for _ in range(4):
            with progress.track("clients", 3, "client", stream=out, keep=False) as inner:
                inner.update(3, images=9)
            outer.update(1, loss=0.5)
    text = out.getvalue()
    assert "rounds [x]" in text and "4/4" in text and "loss 0.5" in text and "\x1b[" in text
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with progress.track("plain", 1, stream=out) as bar:
        bar.update()
    assert out.getvalue().startswith("plain: 1/1 step, in") and "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    "seconds, text",
    [
        (-1, "0.0 s"),
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7630, "2 h 07 min"),
    ],
)
def test_durations_for_people(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    "value, text",
    [
        (3.14159, "3.142"),
        (12345, "12,345"),
        (12345.6, "12,346"),
        (float("nan"), "nan"),
        (np.float32(1e-5), "1e-05"),
        ("cpu", "cpu"),
    ],
)
def test_quantities_for_people(value, text):
    assert progress.quantity(value) == text


FACE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "arrays",
    [
        {"roc/a/b/far": np.arange(2.0)},
        {"roc/a/b/far": np.arange(2.0), "roc/a/b/tar": np.arange(3.0)},
        {"per_client/m/global": np.zeros((2, 2))},
        {"faces": np.zeros((2, 4, 4, 3), np.uint8)},
        {"hard_negatives/000000/client": np.int64(1)},
        {"hard_negatives/000000/client": np.int64(1), "hard_negatives/000000/cosine": np.float32(1)}
        | {f"hard_negatives/000000/{side}_image": FACE[..., 0] for side in ("local", "public")},
        {"mistakes/000000/image_a": FACE},
    ],
)
def test_an_evaluation_that_is_not_whole_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "evaluation.npz", **arrays)
    with pytest.raises(
        InputError, match=r"evaluation\.npz cannot be read .*evaluate the run again"
    ):
        workdir.read_evaluation(tmp_path)
