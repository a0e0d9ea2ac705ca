"""The benchmarks: competitors agree on tiny problems, and the runner writes what it measured."""

import dataclasses
import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    cases,
    compare,
    compile_time,
    ours,
    plain_jax,
    problem,
    run,
    scale,
    trainable,
    workloads,
)
from benchmarks.problem import Case
from fedfr_jax.config import resolve
from fedfr_jax.engine import flops
from fedfr_jax.models import build
from fedfr_jax.models.parts import trained_part
from fedfr_jax.runtime import costs
from fedfr_jax.runtime.simulation import spec_of

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)
TINY = Case(
    depth=10,
    widths=(4, 4, 8, 8),
    size=16,
    batch=4,
    clients=3,
    images=9,
    public=5,
    embedding=8,
    identities=3,
    epochs=3,
)


def written(case, folder):
    plain_jax.problem(case, folder / "problem.npz")
    with np.load(folder / "problem.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(arrays of the tiny problem, what our round makes of them)."""
    found = written(TINY, tmp_path_factory.mktemp("problem"))
    return found, after_one_round(ours.build(TINY, found))


def after_one_round(built):
    built.run()
    return built.update()


def assert_equal_updates(case, arrays, found, expected, tolerance=1e-3):
    start = problem.compared(arrays, case)
    assert problem.relative_difference(found, expected, start) < tolerance
    moved = [np.abs(expected[k] - start[k]).max() for k in start]
    assert min(moved) > 0  # everything that is compared was trained


@pytest.mark.slow
def test_our_round_is_the_plain_jitted_loop(tiny):
    arrays, expected = tiny
    found = plain_jax.loop(TINY, arrays)
    assert found.images == TINY.trained_images == 3 * 9 * 4
    assert_equal_updates(TINY, arrays, after_one_round(found), expected)


@pytest.mark.slow
@needs_torch
def test_our_round_is_the_sequential_pytorch_round(tiny):
    from benchmarks import torch_fedfr  # noqa: PLC0415

    arrays, expected = tiny
    assert_equal_updates(
        TINY, arrays, after_one_round(torch_fedfr.build(TINY, arrays, threads=1)), expected
    )


@needs_torch
@pytest.mark.slow
def test_mobilefacenet_with_batch_norm_is_the_same_in_pytorch(tmp_path):
    from benchmarks import torch_fedfr  # noqa: PLC0415

    case = dataclasses.replace(
        TINY,
        model="mobilefacenet",
        depth=20,
        widths=(64, 128, 256, 512),
        size=32,
        batch=8,
        clients=1,
        images=8,
        public=8,
        epochs=1,
    )
    arrays = written(case, tmp_path)
    assert_equal_updates(
        case,
        arrays,
        after_one_round(torch_fedfr.build(case, arrays, threads=1)),
        after_one_round(ours.build(case, arrays)),
        tolerance=2e-3,  # 8 images: batch norm makes more of differences in rounding
    )


@pytest.mark.slow
def test_the_naive_form_is_compared_with_as_few_steps_of_the_loop(tiny):
    arrays, _ = tiny
    naive = plain_jax.naive(TINY, arrays, steps=2)
    assert naive.images == TINY.clients * 2 * TINY.batch
    assert_equal_updates(TINY, arrays, after_one_round(naive), naive.expected())


@pytest.mark.slow
def test_a_wrong_update_is_noticed(tiny):
    arrays, expected = tiny
    start = problem.compared(arrays, TINY)
    wrong = expected | {"client/binary_bias": start["client/binary_bias"]}
    assert problem.relative_difference(wrong, expected, start) == pytest.approx(1)
    with pytest.raises(ValueError, match="binary_bias"):
        problem.relative_difference(
            {k: v for k, v in expected.items() if "binary_bias" not in k}, expected, start
        )


def small_workload(name):
    workload = dataclasses.replace(problem.WORKLOADS[name], clients=3, size=16, batch=4, steps=2)
    return workload, problem.workload_problem(workload)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B"])
def test_workloads_on_the_engine_are_a_plain_loop(name):
    workload, arrays = small_workload(name)
    start = problem.workload_compared(arrays)
    expected = after_one_round(workloads.loop(workload, arrays))
    for built in (
        ours.build_workload(workload, arrays),
        ours.build_workload(workload, arrays, lanes=2),
    ):
        assert problem.relative_difference(after_one_round(built), expected, start) < 1e-4
    naive = workloads.naive(workload, arrays, steps=2)
    assert problem.relative_difference(after_one_round(naive), naive.expected(), start) < 1e-4


@needs_torch
@pytest.mark.parametrize("name", ["A", "B"])
def test_workloads_are_the_same_in_pytorch(name):
    from benchmarks import torch_workloads  # noqa: PLC0415

    workload, arrays = small_workload(name)
    assert (
        problem.relative_difference(
            after_one_round(torch_workloads.build(workload, arrays, threads=1)),
            after_one_round(workloads.loop(workload, arrays)),
            problem.workload_compared(arrays),
        )
        < 1e-4
    )


@pytest.mark.parametrize("name", ["A", "B"])
def test_multiply_adds_are_counted(name):
    workload, arrays = small_workload(name)
    network = {"A": workloads.logits_a, "B": workloads.features_b}[name]
    counted = flops.multiply_adds(
        lambda x: network(workloads.model_of(arrays), x, "grouped"), jnp.zeros((1, 16, 16, 3))
    )
    head = 0 if name == "A" else workload.classes * 128
    assert counted + head == problem.workload_macs(workload)


def tiny_case(settings):
    """Two competitors in two processes and one that ends."""
    competitors = [
        cases.LOOP,
        dataclasses.replace(cases.LOOP, name="ours", processes=2),
        compare.Competitor("broken", "fedfr_jax.engine.flops:nothing"),
    ]
    return cases.fedfr_case("tiny", TINY, competitors, settings)


@pytest.mark.slow
def test_the_runner_writes_table_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cases.SUITES, "cpu", {"tiny": tiny_case})
    monkeypatch.setattr(run.machine, "peaks", lambda: {"float32": 1e12, "bfloat16": 2e12})
    status = run.main(["--suite", "cpu", "--json", str(tmp_path / "out.json"), "--repeats", "2"])
    out, err = capsys.readouterr()
    assert status == 1 and "WRONG tiny: broken: AttributeError" in err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["machine"]["cores"] >= 1 and report["peaks"]["float32"] == 1e12
    loop, halves, broken = report["results"]["tiny"]["rows"]
    assert len(loop["measured_seconds"]) == 2 and loop["memory"]["host"] > 1e7
    assert loop["images_per_second"] == pytest.approx(TINY.trained_images / loop["seconds"])
    assert loop["flops_with_frozen_forwards"] == pytest.approx(5 / 3 * loop["flops_trained"])
    assert loop["difference"] == 0 and 0 <= halves["difference"] < 1e-4
    assert "AttributeError" in broken["error"]
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and all(row.count("|") == rows[0].count("|") for row in rows)


def test_suite_gpu_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert run.main(["--suite", "gpu"]) == 1
    assert "No GPU: JAX computes on 'cpu'" in capsys.readouterr().err


def test_unknown_cases_are_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["--only", "smal"])
    assert "no case 'smal'" in capsys.readouterr().err


def test_training_from_a_layer_up_sends_less():
    sent = []
    for part in trainable.PARTS:
        config = resolve(trainable.settings(part, clients=2, rounds=3))
        network = build(config.model, config.data.image_size, "grouped")
        spec = spec_of(config, trained_part(network, part))
        sent.append(costs.communication(spec, 4, 4.0)["up"]["backbone"])
    assert sent == sorted(sent, reverse=True) and sent[-1] > 0


def test_compiling_is_timed_by_phase():
    found = compile_time.measure(dataclasses.replace(TINY, depth=4), rounds=2)
    assert all(found[phase] > 0 for phase in ("trace", "lower", "compile"))
    assert len(found["rounds"]) == 2 and found["sum of weights"] > 0


@pytest.mark.slow
def test_suite_scale_finds_all_clients_again():
    found = scale.run(population=9, cohort=2, rounds=3)
    assert found["survived"] and 2 <= found["touched"] <= 6
    assert found["clients"] == 2 and found["seconds"] > 0 and found["disk"] > 0
