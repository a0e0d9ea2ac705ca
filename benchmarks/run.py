"""Compares the speed of fedfr_jax with other ways to do the same work.

    python -m benchmarks.run --suite cpu --json out.json
    python -m benchmarks.run --suite cpu --only small,A --competitors 'ours|PyTorch'

    python -m benchmarks.run --suite gpu --budget 360 --json out.json

Suites: cpu (FedFR's local training and two plain FedAvg workloads), gpu (numbers of lanes),
layouts (convolution strategies), scale, peers (their packages on their own work, after
``python -m benchmarks.peers.environments``). In every case all competitors start from the same
weights and train on the same batches; their updates are compared before times are taken. PyTorch
(``pip install torch``) is optional: without it, its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import gpu, gpu_cases, machine
from benchmarks.cases import SUITES, Settings
from benchmarks.compare import bad
from benchmarks.peers import suite
from benchmarks.worker import call

_SUITES_FROM = (gpu_cases, suite)  # importing them registers their cases
_COLUMNS = (
    "",
    "round (s)",
    "ours is x times as fast",
    "images/s",
    "clients/s",
    "GFLOP/s trained",
    "with frozen forwards",
    "share of peak",
    "compile (s)",
    "memory (MB)",
    "update differs",
)


def _cells(row: Mapping[str, Any], ours: float | None) -> list[str]:
    name = row["name"] + (f" ({row['note']})" if row["note"] else "")
    if row["error"]:
        return [name, f"failed: {row['error'][:80]}", *[""] * (len(_COLUMNS) - 2)]
    difference = f"{row['difference']:.0e}" if "difference" in row else "–"
    difference += " **too much**" if row.get("differs") else ""
    memory = row["memory"].get("device", row["memory"]["host"]) / 1e6
    if "seconds" not in row:
        return [name, *["–"] * 8, f"{memory:.0f}", difference]
    speed, share = row["images_per_second"], row["share_of_peak"]
    return [
        name,
        f"{'≈ ' * row['extrapolated']}{row['seconds']:.2f}",
        f"{ours / speed:.2f}" if ours else "–",
        f"{speed:.0f}",
        f"{row['clients_per_second']:.2f}",
        f"{row['flops_trained'] / 1e9:.0f}",
        f"{row['flops_with_frozen_forwards'] / 1e9:.0f}",
        f"{100 * share:.0f} %" if share else "–",
        f"{row['compile_seconds']:.1f}",
        f"{memory:.0f}",
        difference,
    ]


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of one case; ≈ marks a round extrapolated from fewer steps."""
    if "text" in result:
        return f"### {result['title']}\n\n{result['text']}"
    ours = next((r.get("images_per_second") for r in result["rows"] if r["name"] == "ours"), None)
    lines = [
        f"### {result['title']}",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(_cells(row, ours)) + " |" for row in result["rows"]]
    if any(r.get("extrapolated") for r in result["rows"]):
        lines += ["", "≈: extrapolated from the images per second of fewer steps."]
    return "\n".join(lines)


def _heading(description: Mapping[str, Any], peaks: Mapping[str, float]) -> str:
    rates = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in peaks.items())
    return (
        f"{description['cpu']}, {description['cores']} cores, "
        f"{'; '.join(description['gpu']) or 'no GPU'}; jax {description['jax']}, "
        f"torch {description['torch']}; matrix products in GFLOP/s: {rates}"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", choices=SUITES, default="cpu")
    parser.add_argument("--only", default="", metavar="NAME[,NAME]", help="cases to run")
    parser.add_argument("--json", type=pathlib.Path, help="file for all numbers")
    parser.add_argument("--repeats", type=int, default=5, help="warm rounds of each competitor")
    parser.add_argument("--competitors", default="", metavar="REGEX", help="names to run")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="suite gpu: the most telling rows in so long",
    )
    parser.add_argument("--small", action="store_true", help="with --budget: tiny, on any device")
    parsed = parser.parse_args(argv)
    if parsed.budget and parsed.suite != "gpu":
        parser.error("--budget belongs to suite gpu")
    parsed.names = [n for n in parsed.only.split(",") if n] or list(SUITES[parsed.suite])
    for name in parsed.names:
        if name not in SUITES[parsed.suite]:
            parser.error(
                f"suite {parsed.suite} has no case {name!r}, but "
                f"{', '.join(SUITES[parsed.suite]) or 'none yet'}"
            )
    return parsed


def _write(path: pathlib.Path | None, report: Mapping[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 if an update differs or a competitor failed."""
    options = _arguments(argv)
    if (
        options.suite == "gpu"
        and not options.small
        and (found := call("benchmarks.machine:backend")) != "gpu"
    ):
        print(
            f"No GPU: JAX computes on {found!r} here, so suite gpu was not run. It needs an "
            "NVIDIA GPU and `pip install 'jax[cuda12]'`.",
            file=sys.stderr,
        )
        return 1
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine.describe(),
        "peaks": machine.peaks(),
        "suite": options.suite,
        "results": {},
    }
    print(_heading(report["machine"], report["peaks"]), flush=True)
    if options.budget:

        def write(rows):
            report["results"] = rows
            _write(options.json, report)

        return gpu.main(options.budget, options.repeats, options.small, write)
    settings = Settings(options.repeats, report["peaks"], options.competitors)
    wrong = []
    for name in options.names:
        print(f"{name}:", file=sys.stderr, flush=True)
        result = report["results"][name] = SUITES[options.suite][name](settings)
        print(f"\n{table(result)}", flush=True)
        wrong += [
            f"{name}: {message}" for message in [*bad(result["rows"]), *result.get("wrong", ())]
        ]
        _write(options.json, report)  # after every case: an interrupted run leaves results
    for message in wrong:
        print(f"WRONG {message}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
