"""The closing tables on made-up results."""

from __future__ import annotations

import io
import re

import made_up
import pytest
from rich.console import Console

from fedfr_jax.reporting import labels, tables
from fedfr_jax.reporting.result_table import markdown, render


def test_best_is_bold_and_unresolvable_rates_are_marked():
    summary = made_up.summary(made_up.data(rounds=1).per_client)
    found = {table.title: table for table in tables.closing_tables(summary)}
    generic = found["Generic verification: held_out"]
    assert [name for name, _ in generic.rows] == ["pretrained", "global"]
    assert generic.columns == ("accuracy", "TAR @ FAR 1e-4", "TAR @ FAR 1e-3")
    assert [cell.best for cell in generic.rows[1][1]] == [True, False, True]
    assert generic.rows[0][1][1].text == "–"
    personal = found["Personalized verification (1:1)"]
    cells = dict(personal.rows)["personalized"]
    assert [cell.best for cell in cells] == [False, True, True]
    assert [cell.unresolvable for cell in cells] == [True, False, False]
    assert any("too few impostor" in note for note in personal.notes)
    assert not any(
        "too few impostor" in note
        for note in found["Personalized identification (1:N), open set"].notes
    )
    text = markdown(personal)
    lines = text.splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[4].count("|") == 5
    assert lines[4].count("**") == 4 and "†" in lines[4] and "**" not in lines[2]


def test_ties_and_lone_values_are_not_best_of_anything():
    def models(**accuracy):
        return {
            "models": {
                name: {"generic": {"s": {"accuracy": value}}} for name, value in accuracy.items()
            }
        }

    def best(summary):
        (table,) = tables.closing_tables(summary)
        return {name for name, cells in table.rows if cells[0].best}

    assert best(models(pretrained=0.90001, **{"global": 0.90002})) == set()
    assert best(models(pretrained=0.9)) == set()
    assert best(models(a=0.9, b=0.95, c=0.95)) == {"b", "c"}
    assert best(models(a=None, b=0.95, c=0.9)) == {"b"}


def test_terminal_tables_are_whole_and_bold_on_a_terminal():
    summary = made_up.summary(made_up.data(rounds=1).per_client)
    found = tables.closing_tables(summary)
    out = io.StringIO()
    render(found, Console(file=out, width=40))
    assert "87.00" in out.getvalue() and "…" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    out = io.StringIO()
    render(
        found,
        Console(file=out, width=120, force_terminal=True, color_system="standard", _environ={}),
    )
    assert re.search(r"\x1b\[1;32m\s*94\.90 ± 1\.20", out.getvalue())
    assert "[31m" not in out.getvalue()


@pytest.mark.parametrize(
    "rate, text",
    [
        ("0.001", "1e-3"),
        ("1e-05", "1e-5"),
        (0.05, "5e-2"),
        ("0.1", "1e-1"),
        (1, "1"),
        (0, "0"),
        (0.025, "0.025"),
        (1e-6, "1e-6"),
    ],
)
def test_rates_read_as_in_the_field(rate, text):
    assert tables.rate_label(rate) == text


@pytest.mark.parametrize(
    "key, text",
    [
        ("personal/verification_tar@0.001", "personalized 1:1, TAR @ FAR 1e-3"),
        ("verification_tar@0.001", "personalized 1:1, TAR @ FAR 1e-3"),
        ("personal/rank1", "personalized 1:N, rank-1"),
        ("generic/a/b/tar@0.01", "generic verification (a/b), TAR @ FAR 1e-2"),
        ("verification_tar@x", "verification_tar@x"),
        ("anything", "anything"),
    ],
)
def test_metric_names(key, text):
    assert labels.metric_label(key) == text


def test_spread_table_lists_every_model_and_rate():
    table = tables.spread_table(made_up.summary(made_up.data(rounds=1).per_client))
    assert len(table.rows) == 3 * (3 + 1 + 1 + 1)
    assert tables.spread_table({"models": {}}) is None
