"""Means and spreads over runs that differ in their seeds, as a Markdown table.

    python -m benchmarks.over_seeds pretrained=runs/a0,runs/a1 FedFR=runs/a0,runs/a1

Every argument is a row group: a name and the work directories of its runs. ``NAME:MODEL``
shows one model of these runs (pretrained, global, personalized) instead of the last two.
"""
import sys

import numpy as np

from fedfr_jax.workdir import read_summary

FAR, FPIR = "0.001", "0.01"


def values(run, model):
    """Column -> value in percent of one model of one run."""
    found = run["models"][model]
    personal = found["personalized"]
    row = {f"{name}: accuracy": r["accuracy"] for name, r in found.get("generic", {}).items()}
    return {k: 100 * v for k, v in (row | {
        "1:1 TAR @ FAR 1e-3": personal["verification_tar"][FAR]["mean"],
        "1:1 TAR @ FAR 1e-2": personal["verification_tar"]["0.01"]["mean"],
        "1:N open set TPIR @ FPIR 1e-2": personal["identification_openset"][FPIR]["mean"],
        "1:N pair rule TPIR @ FPIR 1e-2": personal["identification_pair"][FPIR]["mean"],
        "rank-1": personal["rank1"]["mean"],
    }).items()}


def rows(argument):
    """(label, list of per-run column dicts) for each model that an argument asks for."""
    name, folders = argument.split("=", 1)
    name, _, only = name.partition(":")
    runs = [read_summary(folder) for folder in folders.split(",")]
    for model in ([only] if only else ["global", "personalized"]):
        label = model if model == "pretrained" else f"{name} {model}"
        yield label, [values(run, model) for run in runs]


def table(arguments):
    """The Markdown table: mean ± standard deviation over runs, and the gain over row one."""
    found = [row for argument in arguments for row in rows(argument)]
    columns = list(dict.fromkeys(c for _, runs in found for run in runs for c in run))
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    first = found[0][1]
    for label, runs in found:
        cells = []
        for column in columns:
            if column not in runs[0]:
                cells.append("–")
                continue
            got = np.array([run[column] for run in runs])
            text = f"{got.mean():.2f} ± {got.std(ddof=1) if len(got) > 1 else 0:.2f}"
            if runs is not first and len(first) == len(runs):
                gain = got - np.array([run[column] for run in first])
                text += f" ({gain.mean():+.2f}, {gain.min():+.2f} to {gain.max():+.2f})"
            cells.append(text)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2 or any("=" not in a for a in sys.argv[1:]):
        sys.exit(__doc__)
    print(table(sys.argv[1:]))
