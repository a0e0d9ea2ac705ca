"""Several devices and several processes give what one device gives."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import chex
import jax
import numpy as np
import pytest
from small import ROOT

EIGHT_DEVICES = """
import sys; sys.path.insert(0, "tests")
import jax, numpy as np, small
assert len(jax.devices()) == 8
data, method = small.federation(sizes=(9, 5, 12, 8, 6, 7, 11, 4, 10, 5, 9), identities=(3,) * 11,
                                public=10), small.method()
results = []
for devices, lanes in ((1, 1), (8, 2)):  # 11 clients do not divide by eight or two
    layout = small.layout(lanes, devices)
    cohort = data.cohort(devices)
    server, heads = small.start(method, layout, data.public, cohort)
    server, heads, metrics = small.rounds(method, layout, server, heads, data.public, cohort, 2)
    place = [list(np.asarray(cohort.clients)).index(i) for i in range(11)]
    results.append(jax.tree.map(np.asarray, (server, jax.tree.map(lambda x: x[np.array(place)],
                                                                 (heads, metrics)))))
for other in results[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-5 * max(1, np.abs(a).max())), results[0], other)
server, heads = small.start(method, layout, data.public, cohort)
text = small.program(method, layout).lower(server, heads, data.public, small.place(
    cohort, layout), jax.random.key(0)).compile().as_text()
# Only the table of public features is gathered; the client update gathers nothing.
assert text.count(" all-gather(") <= 1, text.count(" all-gather(")
for word in ("all-to-all", "collective-permute", "reduce-scatter"):
    assert word not in text, word
print("equal")
"""


def environment(devices):
    # The number of devices is this test's, not conftest's: the last one counts.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return dict(os.environ, XLA_FLAGS=flags)


@pytest.mark.slow
def test_eight_devices_equal_one():
    found = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        cwd=ROOT,
        env=environment(8),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.strip().endswith("equal"), found.stderr[-3000:]


ONE_PROCESS = """
import sys
from absl import flags
import json
from fedfr_jax.experiment import train
from fedfr_jax.runtime import command_line as cli
from fedfr_jax.config import resolve
cli.define_distributed_flags()
flags.FLAGS(["x", *sys.argv[3:]])
cli.join_processes()
train(resolve(json.loads(sys.argv[2])), sys.argv[1])
"""
ROUNDS_ALONE = ONE_PROCESS.replace("import train", "import Experiment").replace(
    "train(resolve(json.loads(sys.argv[2])), sys.argv[1])",
    "Experiment(json.loads(sys.argv[2]), sys.argv[1]).run()",
)
SETTINGS = {
    "data": {
        "image_size": 16,
        "images": "stream",
        "generated": {"identities": 40, "images_per_identity": (5, 7)},
        "split": {
            "held_out_identities": 10,
            "held_out_pairs": 40,
            "client_fraction": 0.6,
            "identities_per_client": (2, 3),
            "verification_images": 2,
        },
    },
    "model": {"depth": 4, "widths": (4, 4, 8, 8), "embedding": 8},
    "pretrain": {"epochs": 1, "batch_size": 16},
    "fed": {
        "num_clients": 5,
        "rounds": 3,
        "batch_size": 4,
        "local_epochs": (2, 1),
        "lr": 0.01,
        "hard_threshold": 0.9,
    },
    "population": {"cohort": 3},
    "engine": {"lanes": 1, "conv": "custom"},
    "eval": {"fars": (0.01, 0.1), "batch_size": 32},
}


class Started:
    """A process of a run. Its messages go to a file: a full pipe would stop it."""

    def __init__(self, command, environment):
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read after it has ended
        self.popen = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=self._messages
        )
        self.pid = self.popen.pid

    def end(self, seconds):
        """(exit status, messages); a process that hangs shows what its threads are doing."""
        try:
            self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)
            self.popen.wait(timeout=30)
        self._messages.seek(0)
        return self.popen.returncode, self._messages.read()


def start(script, count, devices, *arguments):
    """Starts the processes of one run."""
    joined = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
    return [
        Started(
            [
                *(sys.executable, "-X", "faulthandler", "-c", script, *map(str, arguments)),
                *([*joined, f"--process={i}"] if count > 1 else []),
            ],
            environment(devices),
        )
        for i in range(count)
    ]


def free_port():
    """Below those that the system gives to whoever asks for any: nobody else takes it meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def run_processes(folder, count, devices, settings=SETTINGS, script=ONE_PROCESS):
    for process in start(script, count, devices, folder, json.dumps(settings)):
        status, errors = process.end(600)
        assert status == 0, errors[-6000:]


@pytest.mark.slow
def test_two_processes_with_two_devices_equal_one_device(tmp_path):
    from fedfr_jax.algorithm.initialize import server_shapes  # noqa: PLC0415
    from fedfr_jax.config import resolve  # noqa: PLC0415
    from fedfr_jax.reporting.reevaluation import evaluate  # noqa: PLC0415
    from fedfr_jax.runtime.checkpoints import RoundCheckpoints  # noqa: PLC0415 - imports orbax
    from fedfr_jax.runtime.client_states import open_stores, personal_models  # noqa: PLC0415
    from fedfr_jax.runtime.simulation import build_simulation  # noqa: PLC0415

    run_processes(tmp_path / "one", 1, 1)
    run_processes(tmp_path / "two", 2, 2)
    sim = build_simulation(resolve(SETTINGS))
    found = []
    for name in ("one", "two"):
        with RoundCheckpoints(tmp_path / name) as checkpoints:
            server = checkpoints.restore(server_shapes(sim.spec, sim.public.identities))
        models = personal_models(sim, open_stores(sim, tmp_path / name), server.backbone)
        found.append(jax.device_get((server, [models(i) for i in range(5)])))
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-5)
    summary = evaluate(tmp_path / "two")
    assert set(summary["models"]) >= {"pretrained", "global", "personalized"}
    assert json.loads((tmp_path / "two" / "summary.json").read_text())


MESSAGES = {
    "robust": {
        "fed": {"aggregator": "median", "aggregation": "uniform", "on_bad_update": "quarantine"},
        "hostile": {"clients": (1,), "attack": "alie", "strength": 1.5},
        "population": {"late_dropout": 0.2},
        "privacy": {"quantize_bits": 8},
    },
    "private": {
        "fed": {"aggregation": "uniform"},
        "privacy": {
            "clip_norm": 0.5,
            "clip_quantile": 0.5,
            "noise_multiplier": 0.5,
            "clip_count_noise": 1.0,
            "top_k": 0.5,
        },
    },
    "secure": {
        "fed": {"aggregation": "uniform"},
        "privacy": {"clip_norm": 0.5, "secure_aggregation": True},
        "population": {"late_dropout": 0.2},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_treated_alike_by_two_processes(tmp_path, name):
    from fedfr_jax.algorithm.initialize import server_shapes  # noqa: PLC0415
    from fedfr_jax.config import merged, resolve  # noqa: PLC0415
    from fedfr_jax.runtime import workdir  # noqa: PLC0415
    from fedfr_jax.runtime.checkpoints import RoundCheckpoints  # noqa: PLC0415 - imports orbax
    from fedfr_jax.runtime.simulation import build_simulation  # noqa: PLC0415

    if name == "private":
        pytest.importorskip("dp_accounting")  # epsilon of clients that are drawn
    settings = merged(SETTINGS, {"eval": {"every": 0}, **MESSAGES[name]})
    run_processes(tmp_path / "one", 1, 1, settings, ROUNDS_ALONE)
    run_processes(tmp_path / "two", 2, 1, settings, ROUNDS_ALONE)
    sim = build_simulation(resolve(settings))
    servers, rows = [], []
    for folder in (tmp_path / "one", tmp_path / "two"):
        with RoundCheckpoints(folder) as checkpoints:
            servers.append(
                jax.device_get(checkpoints.restore(server_shapes(sim.spec, sim.public.identities)))
            )
        metrics = workdir.read_metrics(folder)
        rows.append([row for row in metrics if row["kind"] == "round"])
    chex.assert_trees_all_close(*servers, rtol=1e-4, atol=1e-5)
    one, two = rows
    assert len(one) == 3
    for counted in ("quarantined", "late", "clipped"):
        assert [row.get(counted) for row in one] == [row.get(counted) for row in two]


LOSES_ONE = """
import os, signal, sys
sys.path[:0] = ["tests", "tests/runtime"]
import quick
from absl import flags
from fedfr_jax.experiment import train
from fedfr_jax.runtime import command_line as cli, course
from fedfr_jax.runtime.endings import reports_input_errors
cli.define_distributed_flags()
flags.FLAGS(["x", *sys.argv[2:]])
cli.join_processes()
real = course.round_row
def round_row(sim, done, *rest):
    if done == 3 and flags.FLAGS.process == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(sim, done, *rest)
course.round_row = round_row
with reports_input_errors(sys.argv[1]):
    train(quick.quick(fed=quick.SETTINGS["fed"] | {"rounds": 6}), sys.argv[1])
"""


@pytest.mark.slow
def test_the_survivor_of_a_killed_process_says_which_one_is_gone(tmp_path):
    survivor, killed = start(LOSES_ONE, 2, 1, tmp_path)
    status, errors = killed.end(200)
    assert status == -9, errors[-6000:] + survivor.end(1)[1][-6000:]
    status, errors = survivor.end(60)
    assert status == 2 and "Traceback" not in errors, errors[-6000:]
    [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
    who = f"pid {killed.pid} on {socket.gethostname()}"
    assert line.startswith(f"error: process 1 of 2 ({who}) has ended")
    assert f"The state after round 2 is saved in {tmp_path}; the same command with --resume" in line
    assert line.endswith("Start all processes again.") and errors.rstrip().endswith(line)


CHANGES = """
import json, os, signal, sys
sys.path[:0] = ["tests", "tests/runtime"]
import matplotlib.figure, quick, small
from absl import flags
from fedfr_jax.experiment import train
from fedfr_jax.runtime import command_line as cli, course
from fedfr_jax.runtime.endings import reports_input_errors
folder, settings, dies = sys.argv[1:4]
cli.define_distributed_flags()
flags.FLAGS(["x", *sys.argv[4:]])
cli.join_processes()
matplotlib.figure.Figure.savefig = small.save_blank
real = course.round_row
def round_row(sim, done, *rest):
    if str(done) == dies and flags.FLAGS.process == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(sim, done, *rest)
course.round_row = round_row
with reports_input_errors(folder):
    train(quick.quick(**json.loads(settings)), folder, resume=True)
"""
# All that an evaluation can have: hard negatives, a transform, variants, a choice among them,
# pairs of held-out people, degraded images, people at several clients.
EVERYTHING = {
    "method": {"name": "fedfr"},
    "data": {
        "generated": {"identities": 40, "images_per_identity": (11, 12)},
        "degrade": {"blur": 0.2, "low_light": 0.3, "per_client": True},
        "split": {
            "held_out_identities": 8,
            "held_out_pairs": 40,
            "client_fraction": 0.6,
            "identities_per_client": (2, 3),
            "verification_images": 2,
            "validation_images": 2,
            "shared_identities": 0.3,
        },
    },
    "fed": {"num_clients": 5, "rounds": 4, "lr": 0.0005, "hard_threshold": 0.3},
    "population": {"cohort": 4},
    "eval": {"fars": (0.05, 0.2), "every": 1, "examples": 2, "variants": True},
    "engine": {"cpu_devices": 0},
}


def everything_of(folder, config):
    """(server, every client's model) and (rows of evaluations, summary, arrays) of a run."""
    from quick import _simulation  # noqa: PLC0415

    from fedfr_jax.algorithm.initialize import server_shapes  # noqa: PLC0415
    from fedfr_jax.runtime import workdir  # noqa: PLC0415
    from fedfr_jax.runtime.checkpoints import RoundCheckpoints  # noqa: PLC0415 - imports orbax
    from fedfr_jax.runtime.client_states import open_stores, personal_models  # noqa: PLC0415

    sim = _simulation(config)
    with RoundCheckpoints(folder) as checkpoints:
        server = checkpoints.restore(server_shapes(sim.spec, sim.public.identities))
    models = personal_models(sim, open_stores(sim, folder), server.backbone)
    state = jax.device_get((server, [models(i) for i in range(5)]))
    rows = [row for row in workdir.read_metrics(folder) if row["kind"] == "evaluation"]
    rounds = [row["round"] for row in workdir.read_metrics(folder) if row["kind"] == "round"]
    assert rounds == [1, 2, 3, 4]
    summary = workdir.read_summary(folder)
    return state, (
        rows,
        {key: summary[key] for key in ("models", "evaluated", "split", "headline")},
        workdir.read_evaluation(folder),
    )


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_and_with_more_processes(tmp_path):
    from quick import quick  # noqa: PLC0415

    from fedfr_jax.reporting.reevaluation import evaluate  # noqa: PLC0415
    from fedfr_jax.runtime import workdir  # noqa: PLC0415

    settings, config = json.dumps(EVERYTHING), quick(**EVERYTHING)
    started = time.monotonic()
    began = [
        *start(CHANGES, 1, 1, tmp_path / "one", settings, "never"),
        *start(CHANGES, 2, 2, tmp_path / "two", settings, "3"),
    ]
    for process, code in zip(began, (0, 2, -9), strict=True):
        status, errors = process.end(400)
        assert status == code, errors[-6000:]
    expected = everything_of(tmp_path / "one", config)
    assert len({(row["round"], row["model"]) for row in expected[1][0]}) == 1 + 2 * 4 + 1
    for count, devices in ((1, 2), (4, 1)):
        folder = tmp_path / f"on-with-{count}"
        shutil.copytree(tmp_path / "two", folder)
        for process in start(CHANGES, count, devices, folder, settings, "never"):
            status, errors = process.end(400)
            assert status == 0, errors[-6000:]
        state, results = everything_of(folder, config)
        chex.assert_trees_all_close(state, expected[0], rtol=1e-6, atol=1e-6)
        same_numbers(results, expected[1])
        differences = jax.tree.map(
            lambda a, b: np.max(np.abs(a - b), initial=0), state, expected[0]
        )
        print(
            f"2 -> {count} processes: parameters differ by {max(jax.tree.leaves(differences)):.1e} "
            f"at most from one process' ({time.monotonic() - started:.0f} s so far)"
        )
        changes = [r for r in workdir.read_metrics(folder) if r["kind"] == "change"]
        assert [change["settings"]["processes"] for change in changes] == [[2, count]]
        assert len(list((folder / "heads").glob("*.rows"))) == count
        assert (folder / "report.html").exists()
    again = evaluate(folder)  # of four processes, by one
    same_numbers(again["models"], expected[1][1]["models"])


def same_numbers(found, expected, where=""):
    """Equal names and texts, and numbers to 1e-6; images are those of the same people."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            same_numbers(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            same_numbers(*pair, f"{where}/{i}")
    elif isinstance(expected, (float, np.ndarray)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6, err_msg=where)
    else:
        assert found == expected, where


@pytest.mark.parametrize("arguments", [["--coordinator=127.0.0.1:1"], ["--processes=2"]])
def test_incomplete_flags_are_refused(arguments, tmp_path):
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "fedfr_jax.train",
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path}",
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2 and "go together" in found.stderr


WAITS = """
import time
import jax, jax.numpy as jnp
from fedfr_jax import engine
engine.use_cpu_devices(2)
mesh = engine.make_mesh(jax.devices())
assert mesh.size == 2

def update(lane, shared, device, client, state):
    x = lane.repeat(client, lambda i, x: jnp.sin(x @ x) * 0.01, jnp.ones((300, 300)))
    return x.sum(), 1, state, client

@jax.jit
def step(work):
    return engine.for_each_client(update, (), (), work, (), work, work > 0, mesh=mesh, lanes=1)

def seconds(times):
    started = time.monotonic()
    jax.block_until_ready(step(engine.spread(jnp.array([1, times], jnp.int32), mesh)))
    return time.monotonic() - started

seconds(200)
print(seconds(int(200 * 60 / seconds(200))))
"""


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="XLA's limit cannot be set there")
def test_a_device_may_wait_for_another_longer_than_xla_would():
    settings = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", WAITS],
        env=settings,
        cwd=ROOT,
        timeout=400,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) > 45  # XLA's limit is 40 seconds
