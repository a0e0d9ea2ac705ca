"""Suite gpu within a budget: its order, its limits, and a small run on this machine's CPU."""

import json

import pytest

from benchmarks import gpu, run
from benchmarks.gpu import Item
from benchmarks.gpu_rows import forms_of_a_layer, kernel_totals


def test_rows_that_do_not_fit_are_skipped_and_late_ones_killed():
    wanted = [
        Item("fits", "one", "builtins:dict", ([("seconds", 0.5), ("images_per_second", 8)],), 20),
        Item("fails", "one", "builtins:dict", (7,), 20),
        Item("late", "one", "time:sleep", (600,), 0.1),
        Item("after it", "one", "builtins:dict", ([("first_seconds", 2)],), 20),
        Item("too long", "one", "builtins:dict", (), 1e6),
    ]
    told = []
    rows = gpu.run(wanted, 300, told.append)
    assert rows == told and [r["name"] for r in rows] == [i.name for i in wanted]
    assert rows[0]["seconds"] == 0.5 and rows[3]["first_seconds"] == 2
    assert rows[1]["error"].startswith("TypeError") and "killed" in rows[2]["error"]
    assert "takes up to 1000000 s" in rows[4]["skipped"]
    assert gpu.line(rows[0]) == "fits: round 500.0 ms, 8 images/s,"
    assert gpu.line(rows[4]).startswith("too long: skipped: takes")


def event(name, pid, tid, **more):
    return {"name": name, "pid": pid, "tid": tid, "ph": "X", "dur": 1000.0, **more}


def test_kernels_of_a_gpu_are_those_of_its_streams():
    events = [
        {"name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"name": "thread_name", "pid": 1, "tid": 5, "args": {"name": "Stream #5(Compute)"}},
        {"name": "thread_name", "pid": 1, "tid": 6, "args": {"name": "XLA Modules"}},
        event("conv", 1, 5),
        event("add", 1, 5),
        event("conv", 1, 5),
        event("module", 1, 6),
        event("launch", 2, 5, args={"hlo_op": "add"}),
    ]
    assert kernel_totals(events) == {"conv": (0.002, 2), "add": (0.001, 1)}
    assert kernel_totals(events[4:]) == {"add": (0.001, 1)}  # a CPU: operations of XLA


def test_the_most_telling_rows_come_first(tmp_path):
    names = [item.name for item in gpu.items(str(tmp_path))]
    assert "workload A, 64 clients: ours, 64 lanes" in names[:3]
    order = ["workload A", "SphereNet-20, batch 16", "MobileFaceNet", "SphereNet-20, batch 256"]
    first = [next(i for i, n in enumerate(names) if n.startswith(o)) for o in order]
    assert first == sorted(first) and names[-1] == "first round of quickstart"


def test_a_budget_belongs_to_suite_gpu(capsys):
    with pytest.raises(SystemExit):
        run.main(["--suite", "cpu", "--budget", "5"])
    assert "--budget belongs to suite gpu" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_run_writes_every_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.machine, "peaks", lambda: {"float32": 1e12, "bfloat16": 2e12})
    found = gpu.items
    long = ("batch 256", "MobileFaceNet")  # of the same kind as the rows that are left
    monkeypatch.setattr(
        gpu, "items", lambda *a: [i for i in found(*a) if not any(s in i.name for s in long)]
    )
    path = tmp_path / "gpu.json"
    options = ["--suite", "gpu", "--small", "--budget", "600", "--repeats", "1"]
    assert run.main([*options, "--json", str(path)]) == 0
    rows = {row["name"]: row for row in json.loads(path.read_text())["results"]}
    assert rows["SphereNet-20, batch 16: ours"]["seconds"] > 0
    assert rows["SphereNet-20, batch 16: kernels"]["kernels"][0]["seconds"] > 0
    assert rows["first round of quickstart"]["first_seconds"] > 0
    assert "workload A, 4 clients: ours, 2 lanes: round" in capsys.readouterr().out


def test_layouts_and_forms_of_layers_are_timed():
    names = [item.name for item in gpu.items("folder")]
    assert "SphereNet-20, batch 16: ours, layered, 16 lanes" in names
    assert "MobileFaceNet, batch 16: ours, 4 lanes as copies" in names
    assert not any(n.startswith("SphereNet-20, batch 256: ours, layered") for n in names)
    layers = [i for i in gpu.items("folder", 1, True) if i.name.startswith("forms of a layer")]
    assert len(layers) == len(gpu.LAYERS)
    row = forms_of_a_layer(*layers[-1].arguments)
    assert set(row["forms"]) == {"grouped", "patches", "apart"} and row["rule"] == "patches"
    assert "grouped" in gpu.line({"name": "x", **row})
