"""The grid: cells, what is shared, resuming, failures, and the tables that come out."""

import csv
import os

import numpy as np
import pytest
from made_up import compared_summary
from ml_collections import ConfigDict
from small import ROOT, settings

from fedfr_jax.ablation import cells as cells_of
from fedfr_jax.ablation import grid
from fedfr_jax.ablation.rows import BASELINES, FEDFR, PARTS, SWITCHES, batch_norm, fixed_epochs
from fedfr_jax.config import Config, load_config, merged, resolve, to_dict
from fedfr_jax.errors import ConfigError, InputError, InUseError
from fedfr_jax.runtime import workdir
from fedfr_jax.runtime.lock import WorkdirLock
from fedfr_jax.runtime.workdir import read_metrics, read_summary

pytestmark = pytest.mark.usefixtures("blank_figures")
ROWS = (
    FEDFR,
    ("FedAvg", {"method": {"name": "fedavg"}}),
    ("pretrained", {"method": {"name": "pretrained"}}),
)


def base():
    return merged(to_dict(settings()), {"fed": {"public_data": "auto"}})


def test_all_rows_are_settings_that_resolve():
    rows = (FEDFR, *BASELINES, *batch_norm((8, 8, 8, 8)), *PARTS, *SWITCHES, fixed_epochs(2))
    cells = cells_of.make_cells({}, rows, (0, 3))
    assert len(cells) == 2 * len(rows)
    assert len({cell.folder for cell in cells}) == len(cells)
    assert all(isinstance(cell.config, Config) for cell in cells)
    assert cells[-1].config.seed == cells[-1].config.data.seed == 3


def test_grid_of_the_shipped_configuration():
    path = ROOT / "configs" / "ablation.py"
    asked = grid.grid_of(load_config(path))
    cells = asked.cells()
    assert asked.reference == "FedFR"
    assert {"FedFR", "FedAvg", "FedBN, iresnet"} < {cell.row for cell in cells}
    with pytest.raises(ConfigError, match="reference is 'FedXY'"):
        grid.run_grid(cells, "unused", reference="FedXY")
    with pytest.raises(ConfigError, match="no regular expression"):
        grid.run_grid(cells, "unused", only="(")
    with pytest.raises(ConfigError, match="rows is missing"):
        grid.grid_of(ConfigDict({"base": {}, "seeds": (0,)}))


def test_bad_rows_are_named():
    with pytest.raises(ConfigError, match=r"row 'x': fed\.roundz"):
        cells_of.make_cells({}, [("x", {"fed": {"roundz": 1}})], (0,))
    with pytest.raises(ConfigError, match="two of them"):
        cells_of.make_cells({}, [("a b", {}), ("a-b", {})], (0,))


def test_data_that_cannot_be_read_are_one_error_and_not_one_per_cell(tmp_path):
    elsewhere = merged(base(), {"data": {"source": "folder", "root": str(tmp_path / "moved")}})
    cells = cells_of.make_cells(elsewhere, ROWS, (0, 1))
    with pytest.raises(InputError, match="moved"):
        grid.run_grid(cells, tmp_path / "grid", report=pytest.fail)
    assert not (tmp_path / "grid" / "cells").exists()


def test_a_failed_cell_does_not_end_the_grid_and_is_run_again(tmp_path, monkeypatch):
    cells = cells_of.make_cells(base(), ROWS[1:], (0,))
    real, calls = cells_of.train, []

    def train(config, folder, **options):
        calls.append(config.method.name)
        if len(calls) == 1:
            raise MemoryError("no room")
        return real(config, folder, **options)

    monkeypatch.setattr(cells_of, "train", train)
    found = grid.run_grid(cells, tmp_path, reference="FedAvg", report=lambda line: None)
    assert calls == ["fedavg", "pretrained"] and list(found.values) == ["pretrained"]
    assert "no room" in (tmp_path / "cells" / "fedavg" / "seed0" / "error.txt").read_text()
    found = grid.run_grid(cells, tmp_path, reference="FedAvg", report=lambda line: None)
    assert calls == ["fedavg", "pretrained", "fedavg"]
    assert list(found.values) == ["FedAvg", "pretrained"]
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["method"] for row in rows] == ["FedAvg", "pretrained"]
    assert float(rows[0]["sent (MB)"]) > float(rows[1]["sent (MB)"]) == 0


@pytest.mark.slow
def test_grid_runs_resumes_and_survives_failures(tmp_path, monkeypatch):
    cells = cells_of.make_cells(base(), ROWS, (0, 1), vary=("seed",))
    real, calls, lines = cells_of.train, [], []

    def train(config, folder, **options):
        calls.append((config.method.name, config.seed))
        if calls[-1] == ("fedavg", 1) and len(calls) < 7:
            raise MemoryError("no room")
        return real(config, folder, **options)

    monkeypatch.setattr(cells_of, "train", train)
    found = grid.run_grid(cells, tmp_path, report=lines.append)
    assert len(calls) == 6 and any("no room" in line for line in lines)
    assert "no room" in (tmp_path / "cells" / "fedavg" / "seed1" / "error.txt").read_text()
    assert "no room" in (tmp_path / "report.html").read_text()
    accuracy = found.groups["Accuracy"][0]
    assert np.isnan(found.values["FedAvg"][accuracy][1])
    # One pretrained backbone per seed, shared by its rows.
    assert len(list((tmp_path / "pretrained").iterdir())) == 2
    generic = [
        read_summary(tmp_path / "cells" / row / "seed0")["models"]["pretrained"]
        for row in ("fedfr", "fedavg")
    ]
    assert generic[0] == generic[1]

    found = grid.run_grid(cells, tmp_path, report=lines.append)  # only the failed one
    assert len(calls) == 7
    assert not (tmp_path / "cells" / "fedavg" / "seed1" / "error.txt").exists()
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(r["method"], r["seed"]) for r in rows[:2]] == [("FedFR", "0"), ("FedFR", "1")]
    assert len(rows) == 6 and rows == [
        {k: "" if str(v) == "nan" else str(v) for k, v in r.items()} for r in found.rows()
    ]
    text = (tmp_path / "table.md").read_text()
    assert "### Accuracy" in text and "### Cost" in text and "**" in text
    assert list((tmp_path / "plots").glob("compare-*.png"))
    assert float(rows[0]["sent (MB)"]) > float(rows[2]["sent (MB)"]) > 0  # Theta_0 goes along
    assert float(rows[4]["sent (MB)"]) == 0 and float(rows[4]["arithmetic (GFLOP)"]) == 0

    changed = cells_of.make_cells(base() | {"loss": {"margin": 0.1}}, ROWS, (0,), vary=("seed",))

    def refused():
        with pytest.raises(InputError, match=r"other settings \(loss.margin: 0.4 -> 0.1\)"):
            grid.run_grid(changed, tmp_path)

    refused()
    folder = tmp_path / "cells" / "fedfr" / "seed0"
    for name in ("summary.json", "report.html"):  # as if it had been stopped midway
        (folder / name).unlink()
    refused()
    lines.clear()
    found = grid.run_grid(cells, tmp_path, only="^pretrained$", report=lines.append)
    assert len(calls) == 8  # the reference is always run
    assert "FedFR" in (folder / "report.html").read_text()
    assert not any("FedAvg" in line for line in lines)
    assert list(found.values) == ["FedFR", "FedAvg", "pretrained"]


@pytest.mark.slow
def test_seeds_side_by_side_give_what_they_give_alone(tmp_path):
    lines, found = [], {}
    momentum = {"server_optimizer": "momentum", "server_lr": 0.7, "server_momentum": 0.5}
    for name, lanes in (("alone", 1), ("together", 64)):
        cells = cells_of.make_cells(
            merged(base(), {"engine": {"lanes": lanes, "conv": "patches"}, "fed": {"rounds": 2}}),
            [("row", {"method": {"name": "ditto"}, "fed": momentum})],
            (0, 1),
            vary=("seed",),
        )
        lines.clear()
        grid.run_grid(cells, tmp_path / name, report=lines.append)
        assert ("side by side" in " ".join(lines)) == (name == "together")
        assert not list((tmp_path / name).rglob("error.txt"))
        found[name] = [read_metrics(tmp_path / name / "cells" / cell.folder) for cell in cells]
    for alone, together in zip(found["alone"], found["together"], strict=True):
        rows = [[r for r in rows if r["kind"] == "round"] for rows in (alone, together)]
        assert len(rows[0]) == cells[0].config.fed.rounds
        for a, b in zip(*rows, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    losses = [rows[-len(rows)]["loss"] for rows in found["together"]]
    assert losses[0] != losses[1]  # the seeds are different runs


def test_a_cell_with_damaged_results_is_not_finished(tmp_path, caplog):
    [cell] = cells_of.make_cells(base(), ROWS[:1], (0,))
    folder = tmp_path / "cells" / cell.folder
    with workdir.open_run(folder, to_dict(cell.config)) as run:
        run.write_summary(compared_summary(0.9, 0.5))
    (folder / "report.html").touch()
    assert cells_of.is_finished(cell, folder) and grid.compare([cell], tmp_path).values
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text.replace("0.9", "0.8"))
    assert not cells_of.is_finished(cell, folder) and not grid.compare([cell], tmp_path).values
    assert "damaged" in caplog.text and "not finished" in caplog.text


def test_mates_differ_in_nothing_but_the_seed(monkeypatch):
    monkeypatch.setattr(cells_of, "settle", lambda config, **unused: config)
    settings = merged(base(), {"engine": {"lanes": 64}})
    cells = cells_of.make_cells(settings, ROWS, (0, 1, 2), vary=("seed",))
    assert [str(c) for c in cells_of.mates(cells[1], cells)] == [
        "FedAvg, seed 0",
        "FedAvg, seed 1",
        "FedAvg, seed 2",
    ]
    assert cells_of.mates(cells[2], cells) == [cells[2]]  # no rounds to share
    other_data = cells_of.make_cells(settings, ROWS, (0, 1))
    assert cells_of.mates(other_data[0], other_data) == [other_data[0]]


def test_settings_of_rows_reach_the_runs():
    cell = cells_of.make_cells(base(), [("x", {"method": {"fedfr": {"temperature": 0.25}}})], (5,))[
        0
    ]
    assert cell.config.options.temperature == 0.25
    assert cell.config.loss.margin == resolve(base()).loss.margin


def test_a_grid_asks_for_the_devices_before_its_first_run(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(grid, "use_cpu_devices", lambda count: done.append(("devices", count)))
    monkeypatch.setattr(grid, "run_with_mates", lambda cell, *_: done.append(cell.row) or "no run")
    cells = cells_of.make_cells(merged(base(), {"engine": {"cpu_devices": 2}}), ROWS[:2], (0,))
    found = grid.run_grid(cells, tmp_path, report=lambda line: None)
    assert done == [("devices", 2), "FedFR", "FedAvg"]
    assert set(found.failures.values()) == {"no run"}


def test_a_cell_of_another_process_is_left_to_it_and_waited_for(tmp_path, monkeypatch):
    cells = cells_of.make_cells(base(), ROWS[:2], (0,))
    folder = tmp_path / "cells" / cells[0].folder
    folder.mkdir(parents=True)
    lock, order, said = WorkdirLock(folder), [], []
    lock.__enter__()

    def run(cell, free, root, report):
        order.append(cell.row)
        assert [c.row for c in free] == [cell.row]
        finish(root / "cells" / cell.folder, cell)

    def other_process_ends(seconds):
        finish(folder, cells[0])
        lock.__exit__()

    monkeypatch.setattr(grid, "run_with_mates", run)
    monkeypatch.setattr(grid.time, "sleep", other_process_ends)
    assert grid.run_cells(cells, tmp_path, said.append) == {}
    assert order == ["FedAvg"]
    assert said[-1].startswith(f"waiting for FedFR, seed 0, which process {os.getpid()} on ")


def test_a_cell_that_another_process_begins_first_is_no_failure(tmp_path, monkeypatch):
    cells, tries = cells_of.make_cells(base(), ROWS[:1], (0,)), []

    def run(cell, free, root, report):
        tries.append(cell)
        if len(tries) == 1:
            raise InUseError("in use")
        finish(root / "cells" / cell.folder, cell)

    monkeypatch.setattr(grid, "run_with_mates", run)
    assert grid.run_cells(cells, tmp_path, lambda line: None) == {} and len(tries) == 2


def finish(folder, cell):
    """Makes a cell look finished."""
    with workdir.open_run(folder, to_dict(cell.config)) as run:
        run.write_summary(compared_summary(0.9, 0.5))
    (folder / "report.html").touch()
