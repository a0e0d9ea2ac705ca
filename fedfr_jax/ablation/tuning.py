"""Chooses each method's settings on people who are not in the results: ``ablate --tune``.

A grid's configuration may hold ``tune`` with

* ``settings``: what the runs of the search change in ``base``, such as
  ``{"data": {"split": {"tuning": True}}}``, so that they use other people than the results;
* ``rows``: pairs of a row's name and its search, setting -> values. All combinations are run, and
  every row must have as many, so that no method gets a larger budget than another;
* ``seeds``: of the search;
* ``like``, if wanted: pairs of a row without a search and the row whose settings it takes.

Other rows without a search take what was found for the reference: they are its variants.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from fedfr_jax.ablation.metrics import tuning_score
from fedfr_jax.ablation.rows import Row
from fedfr_jax.config import merged, nested
from fedfr_jax.errors import ConfigError
from fedfr_jax.reporting.result_table import Cell, ResultTable

Changes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The search.

    Attributes:
      settings: what its runs change in the base.
      searches: row -> its candidates, label -> nested settings.
      seeds: of its runs.
      like: row without a search -> the row whose settings it takes.
    """

    settings: Changes
    searches: dict[str, dict[str, Changes]]
    seeds: tuple[int, ...]
    like: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def budget(self) -> int:
        """Candidates of each row."""
        return len(next(iter(self.searches.values())))


def tuning_of(tune: Mapping[str, Any], rows: Sequence[Row]) -> Tuning:
    """The search that a configuration asks for.

    Args:
      tune: as the module's docstring says.
      rows: of the grid.

    Raises:
      ConfigError: a part is missing, a row does not exist, or budgets differ.
    """
    for name in ("settings", "rows", "seeds"):
        if not tune.get(name):
            raise ConfigError(f"tune.{name} is missing; a search has settings, rows and seeds")
    names = [name for name, _ in rows]
    searches = {}
    for row, search in tune["rows"]:
        if row not in names:
            raise ConfigError(f"tune.rows: {row!r} is none of the rows: {', '.join(names)}")
        searches[row] = candidates(search)
    first, budget = next((row, len(found)) for row, found in searches.items())
    for row, found in searches.items():
        if len(found) != budget:
            raise ConfigError(
                f"tune.rows: {row!r} has {len(found)} combinations and {first!r} {budget}; give "
                "every row as many, so that none is favored"
            )
    like = dict(tune.get("like", ()))
    for row, other in like.items():
        if row not in names or row in searches or other not in searches:
            raise ConfigError(
                f"tune.like: {row!r} is like {other!r}; the first must be a row without a search, "
                "the second one with a search"
            )
    return Tuning(dict(tune["settings"]), searches, tuple(int(s) for s in tune["seeds"]), like)


def candidates(search: Mapping[str, Sequence[Any]]) -> dict[str, Changes]:
    """All combinations of a search: label, such as "fed.lr = 0.01" -> nested settings."""
    found = {}
    for values in itertools.product(*search.values()):
        chosen = dict(zip(search, values, strict=True))
        changes: Changes = {}
        for setting, value in chosen.items():
            changes = merged(changes, nested(setting, value))
        found[", ".join(f"{setting} = {value:g}" for setting, value in chosen.items())] = changes
    return found


def search_rows(tuning: Tuning, rows: Sequence[Row]) -> list[Row]:
    """The rows of the search's own grid, one for each row and candidate."""
    own = dict(rows)
    return [
        (name_of(row, label), merged(merged(own[row], tuning.settings), changes))
        for row, found in tuning.searches.items()
        for label, changes in found.items()
    ]


def name_of(row: str, label: str) -> str:
    """A row of the search's grid."""
    return f"{row}: {label}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a row's search found: label -> score, and the best of them."""

    scores: dict[str, float]
    best: str


def choose(
    tuning: Tuning,
    summaries: Mapping[str, Mapping[int, Mapping[str, Any]]],
    wanted: Container[str],
) -> dict[str, Choice]:
    """The best candidate of each row, by the mean over seeds of :func:`tuning_score`.

    Args:
      summaries: row of the search's grid -> seed -> ``summary.json``. A candidate that did not
        finish, because training diverged, does not count.
      wanted: rows that must have a choice. Others have one if all their runs are there.

    Raises:
      ConfigError: no candidate of a row finished.
    """
    found = {}
    for row, labels in tuning.searches.items():
        scores = {}
        for label in labels:
            runs = summaries.get(name_of(row, label), {})
            score = float(np.mean([tuning_score(s) for s in runs.values()])) if runs else np.nan
            if len(runs) == len(tuning.seeds) and np.isfinite(score):
                scores[label] = score
        if row not in wanted and len(scores) < len(labels):
            continue
        if not scores:
            raise ConfigError(f"tune.rows: no run of the search of {row!r} was finished")
        found[row] = Choice(scores, max(scores, key=lambda label: scores[label]))
    return found


def tuned_rows(
    rows: Sequence[Row],
    tuning: Tuning,
    found: Mapping[str, Choice],
    reference: str,
    wanted: Container[str],
) -> list[Row]:
    """The rows of the grid with the settings that were chosen.

    Rows that are not wanted are left out, unless their own search is finished.
    """

    def changes(row: str) -> Changes:
        like = row if row in found else tuning.like.get(row, reference)
        return tuning.searches[like][found[like].best] if like in found else {}

    return [(row, merged(own, changes(row))) for row, own in rows if row in wanted or row in found]


def table(tuning: Tuning, found: Mapping[str, Choice]) -> ResultTable:
    """What was chosen, and how much it mattered."""
    rows = []
    for row, choice in found.items():
        scores = list(choice.scores.values())
        rows.append(
            (
                row,
                (
                    Cell(choice.best),
                    Cell(f"{max(scores):.2f}"),
                    Cell(f"{np.median(scores):.2f}"),
                    Cell(f"{min(scores):.2f}"),
                    Cell(f"{len(scores)} of {tuning.budget}"),
                ),
            )
        )
    return ResultTable(
        "Settings, chosen on other people",
        ("chosen", "best score", "median", "worst", "finished"),
        tuple(rows),
        (
            "Score: mean of 1:1 TAR at FAR 1e-3 and open-set 1:N TPIR at FPIR 1e-2, in percent, of "
            "the global or the personalized models, whichever are better; over "
            f"{len(tuning.seeds)} {'seed' if len(tuning.seeds) == 1 else 'seeds'}. All rows had "
            f"the same budget: {tuning.budget} settings. Rows that are not listed take the "
            f"reference's settings{_exceptions(tuning)}.",
        ),
    )


def _exceptions(tuning: Tuning) -> str:
    return "".join(f", {row!r} those of {other!r}" for row, other in tuning.like.items())
