"""The closing tables: models in rows, metrics in columns.

They are built from the plain dict of ``summary.json``::

    {"models": {model: {
        "generic": {set: {"accuracy": a, "accuracy_std": s, "tar": {"0.001": t},
                          "tpir": {"0.01": t}, "rank1": r, "unresolvable": ["0.0001"],
                          "mixed_folds": False}},
        "personalized": {"verification_tar": {"0.001": spread}, "identification_pair": {...},
                         "identification_openset": {...}, "rank1": spread,
                         "unresolvable": {"verification_tar": ["0.0001"]}}}}}

with shares in [0, 1] (or None), and a spread over clients {"mean", "std", "min",
"worst10", "max"}; for a personalized model also "worse", the share of clients for which it is
below the global one. Any part may be missing. ``unresolvable`` lists the rates at which
fewer than one error is allowed (by the pair rule, at most one). ``{"evaluated": {"clients": n,
"of": N}}`` says how many of the clients were evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedfr_jax.evaluation import HEADLINE_FAR, HEADLINE_FPIR, HEADLINE_MODELS
from fedfr_jax.reporting.by_time import time_table
from fedfr_jax.reporting.labels import percent, rate_label
from fedfr_jax.reporting.privacy_table import privacy_table
from fedfr_jax.reporting.result_table import MARK, NONE, Cell, ResultTable

_UNRESOLVED = (
    f"{MARK} fewer than one false accept is allowed at this rate: there are too few "
    "impostor scores to resolve it, and the number is the share of genuine scores "
    "above the highest impostor score."
)
_UNRESOLVED_PAIRS = (
    f"{MARK} the threshold of this rate is the highest impostor score: there are "
    "too few probes to resolve it."
)
_GENERIC = "Generic verification: {}"
_MIXED = (
    "As listed, a fold of this set lacks genuine or impostor pairs: pairs were mixed, with a "
    "fixed seed."
)
_PERSONAL = {
    "verification_tar": ("Personalized verification (1:1)", "TAR @ FAR {}"),
    "identification_pair": ("Personalized identification (1:N), pair rule", "TPIR @ FPIR {}"),
    "identification_openset": ("Personalized identification (1:N), open set", "TPIR @ FPIR {}"),
}

_RULES = {
    "verification_tar": "Every pair of test images with at least one of the client's people.",
    "identification_pair": "The pair rule, the paper's own: one threshold over all pairs of a "
    "test image and one of the client's people; not comparable with other work.",
    "identification_openset": "The open-set rule, the standard one: a test image must find the "
    "right person first, above a threshold that so few strangers pass.",
}


def model_names(summary: Mapping[str, Any]) -> list[str]:
    """The models of a summary: pretrained, global, personalized, then the others."""
    models = summary.get("models", {})
    return [name for name in HEADLINE_MODELS if name in models] + [
        name for name in models if name not in HEADLINE_MODELS
    ]


def _rates(tree: Mapping[str, Any]) -> list[str]:
    return sorted(tree, key=float)


# A column: header -> model -> (value, std, unresolvable).
_Columns = dict[str, dict[str, tuple[float | None, float | None, bool]]]


def _generic_entries(found: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None, bool]]:
    """(header, value, std, unresolvable) of one model's result on one generic set."""
    if "accuracy" in found:
        yield "accuracy", found["accuracy"], found.get("accuracy_std"), False
    unresolvable = {float(rate) for rate in found.get("unresolvable", ())}
    for key, label in (("tar", "TAR @ FAR"), ("tpir", "TPIR @ FPIR")):
        for rate in _rates(found.get(key, {})):
            yield (
                f"{label} {rate_label(rate)}",
                found[key][rate],
                None,
                float(rate) in unresolvable,
            )
    for key in found:
        if match := re.fullmatch(r"rank(\d+)", key):
            yield f"rank-{match[1]}", found[key], None, False


def _generic(models: Mapping[str, Any], names: list[str]) -> dict[str, _Columns]:
    sets: dict[str, _Columns] = {}
    for name in names:
        for set_name, found in models[name].get("generic", {}).items():
            columns = sets.setdefault(set_name, {})
            for header, value, std, mark in _generic_entries(found):
                columns.setdefault(header, {})[name] = (value, std, mark)
    return {_GENERIC.format(set_name): columns for set_name, columns in sets.items()}


def _personal(models: Mapping[str, Any], names: list[str]) -> dict[str, _Columns]:
    tables: dict[str, _Columns] = {}
    for key, (title, header) in _PERSONAL.items():
        columns: _Columns = {}
        for name in names:
            found = models[name].get("personalized", {})
            marks = {float(rate) for rate in found.get("unresolvable", {}).get(key, ())}
            for rate in _rates(found.get(key, {})):
                spread = found[key][rate]
                columns.setdefault(header.format(rate_label(rate)), {})[name] = (
                    spread.get("mean"),
                    spread.get("std"),
                    float(rate) in marks,
                )
            if key == "identification_openset" and "rank1" in found:
                spread = found["rank1"]
                columns.setdefault("rank-1", {})[name] = (
                    spread.get("mean"),
                    spread.get("std"),
                    False,
                )
        tables[title] = columns
    return tables


def _best(column: Mapping[str, tuple]) -> set[str]:
    """The models with the highest printed value; empty if that is not meaningful."""
    shown = {
        name: round(100 * value, 2)
        for name, (value, _, _) in column.items()
        if value is not None and math.isfinite(value)
    }
    resolved = not any(mark for _, _, mark in column.values())
    if not resolved or len(set(shown.values())) < 2:
        return set()
    return {name for name, value in shown.items() if value == max(shown.values())}


def _table(
    title: str,
    columns: _Columns,
    names: list[str],
    notes: tuple[str, ...],
    unresolved: str = _UNRESOLVED,
) -> ResultTable:
    best = {header: _best(column) for header, column in columns.items()}
    rows = []
    for name in names:
        if not any(name in column for column in columns.values()):
            continue
        cells = []
        for header, column in columns.items():
            value, std, mark = column.get(name, (None, None, False))
            text = percent(value, std)
            cells.append(Cell(text, name in best[header], mark and text != NONE))
        rows.append((name, tuple(cells)))
    marked = any(cell.unresolvable for _, cells in rows for cell in cells)
    return ResultTable(
        title, tuple(columns), tuple(rows), notes + ((unresolved,) if marked else ())
    )


def _sample(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """A note if only some of the clients were evaluated."""
    found = summary.get("evaluated", {})
    if found.get("clients") == found.get("of"):
        return ()
    return (
        f"{found['clients']} of {found['of']} clients, drawn at random (eval.clients): probes "
        "and impostors, too, are images of these clients only.",
    )


def closing_tables(summary: Mapping[str, Any]) -> list[ResultTable]:
    """The tables of a run: one per generic set, personalized 1:1 and 1:N, fairness and cost.

    Args:
      summary: see the module's docstring.

    Returns:
      Tables in percent, without empty ones. The best model of a column is
      marked unless all printed values are equal, only one model has a value, or the
      rate cannot be resolved.
    """
    models, names = summary.get("models", {}), model_names(summary)
    generic, personal = _generic(models, names), _personal(models, names)
    mixed = {
        _GENERIC.format(set_name)
        for model in models.values()
        for set_name, found in model.get("generic", {}).items()
        if found.get("mixed_folds")
    }
    tables = [
        _table(
            title,
            columns,
            names,
            (
                "In percent; ± is the standard deviation over the folds.",
                *([_MIXED] if title in mixed else ()),
            ),
        )
        for title, columns in generic.items()
        if columns
    ]
    notes = ("In percent; mean ± standard deviation over the clients.", *_sample(summary))
    for key, (title, _) in _PERSONAL.items():
        if personal[title]:
            unresolved = _UNRESOLVED_PAIRS if key == "identification_pair" else _UNRESOLVED
            said = (_RULES[key], *notes)
            tables.append(_table(title, personal[title], names, said, unresolved))
    more = (
        fairness_table(summary),
        time_table(summary),
        cost_table(summary),
        privacy_table(summary),
    )
    return tables + [table for table in more if table is not None]


def megabytes(parts: Mapping[str, float]) -> str:
    """The total of the parts in MB, as text: ``1.20``; ``0`` for nothing."""
    return f"{sum(parts.values()) / 1e6:.3g}"


def cost_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """What a client receives, sends and computes in a round (``summary["costs"]``)."""
    costs = summary.get("costs")
    if not costs:
        return None
    method = summary.get("run", {}).get("method", "this run")
    what = ", ".join(f"{name} {size / 1e6:.3g} MB" for name, size in costs["up"].items())
    cells = (
        megabytes(costs["down"]),
        megabytes(costs["up"]),
        f"{costs['flops'] / 1e9:.3g}",
        what or "nothing",
    )
    return ResultTable(
        "Cost of a round for a client",
        ("received (MB)", "sent (MB)", "arithmetic (GFLOP)", "what is sent"),
        ((method, tuple(map(Cell, cells))),),
        (
            "Mean over clients and rounds, from the tensors' sizes in float32 and the passes "
            "through the backbone.",
        ),
    )


def headline_rate(rates: Iterable[str], aim: float) -> str:
    """The rate closest to ``aim``, in orders of magnitude; rates are keys of results, as text."""
    return min(rates, key=lambda rate: abs(math.log(float(rate) / aim)))


def fairness_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """How unequal the clients are, per model, at the rates nearest to FAR 1e-3 and FPIR 1e-2."""
    models = {
        name: found["personalized"]
        for name in model_names(summary)
        if (found := summary["models"][name]).get("personalized")
    }
    columns: _Columns = {}
    for key, label, aim in (
        ("verification_tar", "1:1", HEADLINE_FAR),
        ("identification_openset", "1:N", HEADLINE_FPIR),
    ):
        for name, found in models.items():
            if spreads := found.get(key):
                rate = headline_rate(spreads, aim)
                at = f" at {rate_label(rate)}"
                for what, part in (("worst tenth", "worst10"), ("worse off", "worse")):
                    columns.setdefault(f"{label}{at}: {what}", {})[name] = (
                        spreads[rate].get(part),
                        None,
                        False,
                    )
    if not columns:
        return None
    cells = tuple(
        (name, tuple(Cell(percent(column.get(name, (None,))[0])) for column in columns.values()))
        for name in models
    )
    return ResultTable(
        "Fairness: how the clients differ",
        tuple(columns),
        cells,
        (
            "In percent. Worst tenth: mean of the clients who do worst; worse off: clients whose "
            "own model is below the global one.",
            *_sample(summary),
        ),
    )


def spread_table(summary: Mapping[str, Any]) -> ResultTable | None:
    """How the clients differ: mean, worst tenth, lowest and highest per metric and model."""
    models = summary.get("models", {})
    rows = []
    for key, (_, header) in _PERSONAL.items():
        rates = sorted(
            {
                rate
                for model in models.values()
                for rate in model.get("personalized", {}).get(key, {})
            },
            key=float,
        )
        for rate in rates:
            for name in model_names(summary):
                found = models[name].get("personalized", {}).get(key, {}).get(rate)
                if found:
                    short = {
                        "identification_pair": "1:N pair rule, ",
                        "identification_openset": "1:N open set, ",
                    }.get(key, "1:1, ")
                    rows.append(
                        (f"{short}{header.format(rate_label(rate))}: {name}", _spread(found))
                    )
    for name in model_names(summary):
        found = models[name].get("personalized", {}).get("rank1")
        if found:
            rows.append((f"1:N, rank-1: {name}", _spread(found)))
    if not rows:
        return None
    return ResultTable(
        "Spread over the clients",
        ("mean", "std", "worst tenth", "lowest", "highest", "worse off"),
        tuple(rows),
        (
            "In percent. Worse off: the share of clients whose own model is below the global one.",
            *_sample(summary),
        ),
    )


def _spread(found: Mapping[str, Any]) -> tuple[Cell, ...]:
    return tuple(
        Cell(percent(found.get(key))) for key in ("mean", "std", "worst10", "min", "max", "worse")
    )
