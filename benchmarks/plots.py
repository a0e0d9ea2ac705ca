"""Plots of the scale suite for docs/performance.md.

python -m benchmarks.plots runs/bench-scale.json docs
"""

from __future__ import annotations

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_BLUE, _ORANGE = "#0072B2", "#D55E00"


def _two_axes(x, left, right, labels, path):
    """One quantity on the left axis, one on the right, over a logarithmic x."""
    figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    axis.plot(x, left, "o-", color=_BLUE)
    axis.set_xscale("log")
    axis.set_xticks(x, [f"{v:,}" for v in x])
    axis.minorticks_off()
    axis.set_ylim(0, 1.25 * max(left))
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1], color=_BLUE)
    other = axis.twinx()
    other.plot(x, right, "s--", color=_ORANGE)
    other.set_ylim(0, 1.25 * max(right))
    other.set_ylabel(labels[2], color=_ORANGE)
    for side in (axis, other):
        side.spines["top"].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw(report: dict, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes one PNG per case in the report; returns their paths."""
    made = []
    for name, key in (("cohort", "cohort"), ("population", "population")):
        if name in report["results"]:
            rows = report["results"][name]["found"]
            made.append(folder / f"scale-{name}.png")
            _two_axes(
                [r[key] for r in rows],
                [1e3 * r["found"]["seconds"] / r["found"]["clients"] for r in rows],
                [r["found"]["memory"] / 2**30 for r in rows],
                (f"{name} (clients)", "time per client (ms)", "host memory (GiB)"),
                made[-1],
            )
    if "lanes" in report["results"]:
        rows = [r for r in report["results"]["lanes"]["rows"] if r["name"].endswith("lanes")]
        made.append(folder / "scale-lanes.png")
        _two_axes(
            [int(r["name"].split()[0]) for r in rows],
            [r["seconds"] for r in rows],
            [r["memory"]["host"] / 2**30 for r in rows],
            ("lanes per device", "round (s)", "process memory (GiB)"),
            made[-1],
        )
    return made


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    report = json.loads(pathlib.Path(argv[0]).read_text(encoding="utf-8"))
    for path in draw(report, pathlib.Path(argv[1])):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
