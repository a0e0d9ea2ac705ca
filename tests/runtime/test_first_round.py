"""What the first round of a run waits for, by what is traced, compiled and measured: no times."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import SETTINGS, quick

from fedfr_jax import engine
from fedfr_jax.config import resolve
from fedfr_jax.engine.compilations import compilations
from fedfr_jax.engine.once import run_once
from fedfr_jax.experiment import Experiment
from fedfr_jax.models import build
from fedfr_jax.population import images
from fedfr_jax.runtime import autotune, command_line, course, interrupts, programs, workdir
from fedfr_jax.runtime.simulation import build_simulation
from fedfr_jax.settings import ModelConfig

EVERY = {"eval": SETTINGS["eval"] | {"every": 4}}


def kinds(folder):
    rows = workdir.read_metrics(folder)
    return [(row["kind"], row["round"]) for row in rows if row["kind"] in ("round", "evaluation")]


def test_the_pretrained_model_is_evaluated_after_the_first_round(tmp_path):
    with Experiment(quick(**EVERY), tmp_path) as run:
        run.run(2)
        run.run(1)
    assert kinds(tmp_path) == [("round", 1), ("evaluation", 0), ("round", 2), ("round", 3)]


def test_test_images_are_read_for_the_first_evaluation(tmp_path):
    with Experiment(quick(), tmp_path) as run:
        run.run(1)
        assert not {"held_out", "generic"} & vars(run.sim).keys()
        run.evaluate()
        assert {"held_out", "generic"} <= vars(run.sim).keys()


def test_its_evaluation_is_made_up_for_if_the_run_stopped(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, Experiment(quick(**EVERY), tmp_path) as run:
        patched.setattr(interrupts, "pending", lambda: True)
        with pytest.raises(interrupts.Stopped):
            run.run()
    assert kinds(tmp_path) == [("round", 1)]
    with Experiment(quick(**EVERY), tmp_path, resume=True) as run:
        assert run.round == 1
        run.run(2)
    assert kinds(tmp_path) == [("round", 1), ("round", 2), ("evaluation", 0), ("round", 3)]


def test_few_programs_are_compiled_before_the_first_round(tmp_path, monkeypatch):
    found = []
    real = course.round_row
    monkeypatch.setattr(
        course, "round_row", lambda *a, **k: found.append(compilations()) or real(*a, **k)
    )
    before = compilations()
    with Experiment(quick(**EVERY), tmp_path) as run:
        run.run(1)
    assert found[0] - before <= 16  # 11 when this was written


def test_nothing_is_compiled_when_a_run_goes_on(tmp_path):
    with Experiment(quick(**EVERY), tmp_path) as run:
        run.run(1)
        run.run(1)
        before = compilations()
        run.run(1)
        assert compilations() == before


SHAPES = {
    "as it is": {},
    "streamed": {"data": SETTINGS["data"] | {"images": "stream"}},
    "rendered": {"data": SETTINGS["data"] | {"images": "render"}},
    "fedfr": {
        "method": {"name": "fedfr"},
        "population": {"previous": "bfloat16"},
        "simulated_time": {"speed": 10.0},
    },
    "messages": {
        "privacy": {"top_k": 0.5},
        "fed": SETTINGS["fed"] | {"server_optimizer": "adam"},
    },
}


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_compiled_ahead_is_not_compiled_again(kind, caplog):
    """Calls find the thread's programs: shapes, types and shardings are the same."""
    for ahead in (True, False):
        caplog.clear()
        with Experiment(quick(**SHAPES[kind]), compile_ahead=ahead) as run:
            run._programs.wait()
            assert (run._programs.compiling is not None) == ahead
            with jax.log_compiles():
                run.run(1)
        for name in ("round_of_run", "start", "finite"):
            assert (f"jit({name})" in caplog.text) != ahead


@pytest.mark.parametrize(
    "changes", [{"engine": SETTINGS["engine"] | {"part": 2}}, {"fed": {"trainable": "embedding"}}]
)
def test_what_is_not_compiled_ahead(changes, tmp_path):
    changes = {name: SETTINGS[name] | group for name, group in changes.items()}
    with Experiment(quick(**changes), compile_ahead=True) as run:
        assert run._programs.compiling is None


def test_nothing_is_compiled_ahead_if_all_rounds_are_done(tmp_path):
    with Experiment(quick(), tmp_path) as run:
        run.run()
    with Experiment(quick(), tmp_path, resume=True, compile_ahead=True) as run:
        assert not run._programs.compiling and not run.run()


def test_a_command_that_failed_does_not_wait_for_the_thread(monkeypatch):
    codes, over = [], threading.Event()
    monkeypatch.setattr("os._exit", codes.append)
    command_line.end_at_once_if_compiling(2)
    assert codes == []
    monkeypatch.setattr(programs, "_first_arguments", lambda sim: over.wait())
    with Experiment(quick(), compile_ahead=True):
        command_line.end_at_once_if_compiling(2)
        over.set()
    assert codes == [2]


def test_a_failure_ahead_is_the_calls_to_raise(monkeypatch):
    monkeypatch.setattr(programs, "_first_arguments", lambda sim: 1 / 0)
    with Experiment(quick(), compile_ahead=True) as run:
        assert len(run.run(1)) == 1


def test_an_update_is_traced_once():
    traced = []

    def update(lane, shared, device, client, state):
        traced.append(0)
        return client * shared, jnp.float32(1), state + client, state

    result = engine.for_each_client(
        update, 2.0, (), jnp.arange(4.0), jnp.ones(4), mesh=engine.make_mesh(jax.devices()[:1])
    )
    assert len(traced) == 1
    assert result.average == 3.0 and result.state.tolist() == [1, 2, 3, 4]


def test_a_block_is_traced_once():
    traced = []
    found = engine.loop_blocks(
        lambda p: traced.append(0) or 2 * p, jnp.arange(10), jnp.int32(10), block=4
    )
    assert len(traced) == 1 and found.tolist() == list(range(0, 20, 2))


def test_one_program_reads_any_number_of_images():
    sim = build_simulation(quick(data=SETTINGS["data"] | {"images": "resident"}))
    every = sim.client_images.numbers
    images._taken.clear_cache()
    for numbers in (every[:1], every[::-1], every[3:9], every[:0], np.resize(every, 700)):
        np.testing.assert_array_equal(sim.client_images.read(numbers), sim.source.read(numbers))
    assert images._taken._cache_size() == 1


@pytest.mark.parametrize("batch, measured", [(64, 0), (4, 3)])
def test_where_rules_are_sure_nothing_is_measured(batch, measured, monkeypatch, tmp_path):
    """On a CPU, a network that is not tiny has one layout that is always fastest."""
    monkeypatch.setenv("FEDFR_PLANS", str(tmp_path / "plans.json"))
    tried = []
    monkeypatch.setattr(autotune, "seconds_per_step", lambda *a: tried.append(a) or 1.0)
    config = resolve(
        {
            "data": {"image_size": 32},
            "model": {"depth": 10, "widths": (8, 16, 32, 32), "embedding": 32},
            "fed": {"num_clients": 8, "batch_size": batch},
        }
    )
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    lines = []
    found = autotune.settle(config, report=lines.append)
    assert (found.engine.lanes, found.engine.conv) == (1, "custom")
    assert len(tried) == measured
    assert ("by rule" in lines[0]) == (not measured) == (not autotune.cache_file().exists())


@pytest.mark.parametrize("size", [3, programs._SMALL_LEAF + 1])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_what_is_not_finite_is_found_in_leaves_of_any_size(size, dtype):
    finite = programs.compile_finite(engine.make_mesh(jax.devices()[:1]))
    server = {"w": np.ones(4, np.float32), "round": np.int32(3)}
    heads = {"a": np.ones((2, size), dtype), "b": np.ones((2, 2, 2), np.float32)}
    assert [np.asarray(x).tolist() for x in finite(server, heads)] == [True, [True, True]]
    heads["a"][1, 2] = np.inf
    assert [np.asarray(x).tolist() for x in finite(server, heads)] == [True, [True, False]]
    server["w"][3] = np.nan
    assert not finite(server, heads)[0]


def test_initial_weights_do_not_depend_on_the_compilers_effort():
    model = ModelConfig(name="spherenet", depth=4, widths=(4, 8, 8, 16), embedding=8)
    init, key = build(model, 16, "custom").init, jax.random.key(5)
    chex.assert_trees_all_equal(run_once(init, key), init(key))
