"""Choosing settings: the search, equal budgets, the choice, and the whole of ``ablate --tune``."""

import pytest
from made_up import compared_summary
from ml_collections import ConfigDict
from small import settings

from fedfr_jax.ablation import cells as cells_of
from fedfr_jax.ablation import grid, tuning
from fedfr_jax.config import merged, to_dict
from fedfr_jax.errors import ConfigError

pytestmark = pytest.mark.usefixtures("blank_figures")
ROWS = (
    ("FedFR", {}),
    ("FedProx", {"method": {"name": "fedprox"}}),
    ("FedFR without DFC", {"method": {"fedfr": {"binary_weight": 0.0}}}),
)
TUNE = {
    "settings": {"data": {"split": {"tuning": True}}},
    "seeds": (7,),
    "rows": (
        ("FedFR", {"fed.lr": (0.1, 0.01)}),
        ("FedProx", {"fed.lr": (0.1,), "method.fedprox.weight": (0.5, 1.0)}),
    ),
}


def searched(**changes):
    return tuning.tuning_of(TUNE | changes, ROWS)


def summaries(scores):
    return {name: {7: compared_summary(0.9, score)} for name, score in scores.items()}


SCORES = {
    "FedFR: fed.lr = 0.1": 0.3,
    "FedFR: fed.lr = 0.01": 0.4,
    "FedProx: fed.lr = 0.1, method.fedprox.weight = 0.5": 0.6,
    "FedProx: fed.lr = 0.1, method.fedprox.weight = 1": 0.5,
}


def test_a_search_is_all_combinations_of_its_values():
    found = tuning.candidates({"fed.lr": (0.1, 0.01), "method.moon.weight": (1, 5)})
    assert list(found) == [
        "fed.lr = 0.1, method.moon.weight = 1",
        "fed.lr = 0.1, method.moon.weight = 5",
        "fed.lr = 0.01, method.moon.weight = 1",
        "fed.lr = 0.01, method.moon.weight = 5",
    ]
    assert found["fed.lr = 0.01, method.moon.weight = 5"] == {
        "fed": {"lr": 0.01},
        "method": {"moon": {"weight": 5}},
    }


def test_each_row_takes_its_best_and_variants_take_the_reference_s():
    search = searched()
    found = tuning.choose(search, summaries(SCORES), ("FedFR", "FedProx"))
    rows = dict(tuning.tuned_rows(ROWS, search, found, "FedFR", dict(ROWS)))
    assert rows["FedFR"] == {"fed": {"lr": 0.01}}
    assert rows["FedProx"] == {
        "method": {"name": "fedprox", "fedprox": {"weight": 0.5}},
        "fed": {"lr": 0.1},
    }
    assert rows["FedFR without DFC"] == {
        "method": {"fedfr": {"binary_weight": 0.0}},
        "fed": {"lr": 0.01},
    }
    table = tuning.table(search, found)
    assert [cell.text for cell in table.rows[1][1]] == [
        "fed.lr = 0.1, method.fedprox.weight = 0.5",
        "60.00",
        "55.00",
        "50.00",
        "2 of 2",
    ]


def test_a_row_can_take_another_row_s_settings():
    long = ("FedProx, longer", {"method": {"name": "fedprox"}, "fed": {"rounds": 9}})
    search = tuning.tuning_of(TUNE | {"like": ((long[0], "FedProx"),)}, (*ROWS, long))
    found = tuning.choose(search, summaries(SCORES), ("FedFR", "FedProx"))
    rows = dict(tuning.tuned_rows((*ROWS, long), search, found, "FedFR", dict((*ROWS, long))))
    assert rows[long[0]] == {
        "method": {"name": "fedprox", "fedprox": {"weight": 0.5}},
        "fed": {"rounds": 9, "lr": 0.1},
    }
    assert "'FedProx, longer' those of 'FedProx'" in tuning.table(search, found).notes[0]


def test_candidates_that_diverged_do_not_count_but_one_must_finish():
    search = searched()
    some = summaries({k: v for k, v in SCORES.items() if k != "FedFR: fed.lr = 0.01"})
    assert tuning.choose(search, some, ("FedFR", "FedProx"))["FedFR"].best == "fed.lr = 0.1"
    none = summaries({k: v for k, v in SCORES.items() if not k.startswith("FedFR")})
    with pytest.raises(ConfigError, match="no run of the search of 'FedFR' was finished"):
        tuning.choose(search, none, ("FedFR",))


def test_rows_that_are_not_wanted_are_left_out_until_their_search_is_complete():
    search = searched()
    partly = summaries({k: v for k, v in SCORES.items() if not k.endswith("weight = 1")})
    found = tuning.choose(search, partly, ("FedFR",))
    assert list(found) == ["FedFR"]
    assert [r for r, _ in tuning.tuned_rows(ROWS, search, found, "FedFR", ("FedFR",))] == ["FedFR"]
    found = tuning.choose(search, summaries(SCORES), ("FedFR",))
    assert list(found) == ["FedFR", "FedProx"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rows": (("FedXY", {"fed.lr": (1,)}),)}, "tune.rows: 'FedXY' is none of the rows"),
        (
            {"rows": (*TUNE["rows"][:1], ("FedProx", {"fed.lr": (1, 2, 3)}))},
            "'FedProx' has 3 combinations and 'FedFR' 2",
        ),
        ({"seeds": ()}, "tune.seeds is missing"),
        ({"like": (("FedFR", "FedProx"),)}, "the first must be a row without a search"),
        ({"like": (("FedFR without DFC", "FedXY"),)}, "the second one with a search"),
        ({"settings": {}}, "tune.settings is missing"),
    ],
)
def test_a_wrong_search_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        searched(**changes)


def test_the_search_uses_other_people_and_the_grid_its_choice(tmp_path, monkeypatch):
    base = merged(to_dict(settings()), {"data": {"split": {"tuning_fraction": 0.4}}})
    config = ConfigDict({"base": base, "rows": ROWS, "seeds": (0, 1), "reference": "FedFR"})
    config.tune = ConfigDict(TUNE)
    asked, trained = grid.grid_of(config), []

    def run(cell, free, root, report):
        trained.append(cell)
        folder = root / "cells" / cell.folder
        with cells_of.workdir.open_run(folder, to_dict(cell.config)) as opened:
            opened.write_summary(compared_summary(0.9, SCORES.get(cell.row, 0.5)))
        (folder / "report.html").touch()

    monkeypatch.setattr(grid, "run_with_mates", run)
    found, table = grid.tuned(asked, tmp_path, report=lambda line: None)
    assert [cell.row for cell in trained] == list(SCORES)
    assert all(cell.config.data.split.tuning and cell.seed == 7 for cell in trained)
    assert (tmp_path / "tuning" / "table.md").read_text().count("fed.lr = 0.01") == 1
    del trained[:]
    compared = grid.run_grid(found.cells(), tmp_path, chosen=table, report=lambda line: None)
    assert not any(cell.config.data.split.tuning for cell in trained)
    assert [cell.config.fed.lr for cell in trained] == [0.01, 0.1, 0.01] * 2
    assert compared.tables()[-1] is table
    assert "chosen on other people" in (tmp_path / "report.html").read_text()


def test_tune_without_a_search_is_refused(tmp_path):
    asked = grid.grid_of(ConfigDict({"base": to_dict(settings()), "rows": ROWS, "seeds": (0,)}))
    with pytest.raises(ConfigError, match="the configuration has no tune"):
        grid.tuned(asked, tmp_path)
