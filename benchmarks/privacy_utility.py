"""What privacy costs and what it protects, on faces: utility and audits at several epsilons.

    python -m benchmarks.privacy_utility --folder=runs/privacy-utility --seeds=0,1,2

Generated faces of 32 pixels, a small SphereNet that is pretrained on public people, 256 clients of
four people that all take part in every round, one local epoch, momentum on the server. The method
is FedAvg or FedFR; epsilon is central, at a delta of 1e-4, for a client with all its images.
Messages are clipped without noise, too (epsilon inf), so that the rows differ in noise alone. Every
finished cell (method, epsilon, seed) is kept in ``results.json``; the table and the figure are made
of the cells that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BASE: dict[str, Any] = {
    "data": {
        "image_size": 32,
        "generated": {"identities": 1340, "images_per_identity": (10, 10), "difficulty": 0.7},
        "split": {
            "held_out_identities": 140,
            "held_out_pairs": 2000,
            "client_fraction": 0.9,
            "identities_per_client": (4, 4),
            "verification_images": 4,
            "public_identities": 100,
        },
    },
    "model": {"depth": 4, "widths": (8, 16, 32, 32), "embedding": 32},
    "pretrain": {"epochs": 14, "batch_size": 16, "lr": 0.02},
    "fed": {
        "num_clients": 256,
        "rounds": 8,
        "batch_size": 8,
        "local_epochs": (1,),
        "lr_decay_epochs": (1,),
        "lr": 0.03,
        "server_optimizer": "momentum",
        "aggregation": "uniform",
        "hard_threshold": 0.9,
    },
    "privacy": {"clip_norm": 0.5, "delta": 1e-4},
    "eval": {
        "clients": 32,
        "fars": (0.001, 0.01, 0.1),
        "every": 0,
        "variants": False,
        "examples": 0,
    },
    "engine": {"lanes": 1, "conv": "custom", "cpu_devices": 1},
    "checkpoint": {"every": 1000},
}
METHODS = {"FedAvg": {"name": "fedavg"}, "FedFR": {"name": "fedfr"}}
EPSILONS = (math.inf, 8.0, 4.0, 2.0, 1.0)
PLAN: dict[str, Any] = {
    "what": ("membership", "inversion", "canary"),
    "people": 140,
    "clients": 32,
    "images": 6,
    "shadows": 8,
    "targets": 12,
    "steps": 250,
    "restarts": 2,
    "canaries": 400,
}
# name in the table -> (key of a cell, factor, digits)
COLUMNS = {
    "noise multiplier": ("noise_multiplier", 1, 2),
    "global 1:1, accuracy (%)": ("global/accuracy", 100, 1),
    "global 1:N, rank 1 (%)": ("global/rank1", 100, 1),
    "personalized 1:1, TAR@1e-2 (%)": ("personalized/tar", 100, 1),
    "personalized 1:N, rank 1 (%)": ("personalized/rank1", 100, 1),
    "membership AUC, image, global": ("auc/global/image (strangers)", 1, 3),
    "membership AUC, person, global": ("auc/global/person (training images)", 1, 3),
    "membership AUC, image, personalized": ("auc/personalized/image (strangers)", 1, 3),
    "re-identified from a message (%)": ("rank1/server", 100, 1),
    "re-identified from the released sum (%)": ("rank1/released", 100, 1),
    "canaries show at least epsilon": ("canary", 1, 2),
    "accountant's epsilon": ("epsilon", 1, 2),
}


def key_of(method: str, epsilon: float, seed: int) -> str:
    """The name of a cell."""
    return f"{method}/{epsilon:g}/{seed}"


def settings_of_cell(
    method: str, epsilon: float, seed: int, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of one run.

    Args:
      changes: groups of settings that differ from ``BASE``, for a smaller grid.
    """
    from fedfr_jax.config import merged  # noqa: PLC0415 - the environment is set first

    found = merged(BASE, changes or {})
    privacy = {} if math.isinf(epsilon) else {"target_epsilon": epsilon}
    own = {"method": METHODS[method], "privacy": privacy, "seed": seed, "data": {"seed": seed}}
    return merged(found, own)


def run_cell(
    settings: Mapping[str, Any], folder: pathlib.Path, start: pathlib.Path, plan: Any, source: Any
) -> dict[str, Any]:
    """Trains, evaluates and audits one cell.

    Args:
      settings: of the run.
      folder: its work directory, of which the audit's files are kept.
      start: folder of the pretrained backbone that cells of a seed share.
      plan: of the audit.
      source: the images that cells of a seed share.
    """
    from fedfr_jax.audit.command import audit  # noqa: PLC0415
    from fedfr_jax.experiment import Experiment  # noqa: PLC0415
    from fedfr_jax.reporting.results import evaluate_models, make_assessor  # noqa: PLC0415
    from fedfr_jax.runtime.pretrained import copy_pretrained  # noqa: PLC0415

    if start.is_dir():
        copy_pretrained(start, folder / "pretrained")
    with Experiment(settings, folder, resume=True, source=source) as experiment:
        if not start.is_dir():
            copy_pretrained(folder / "pretrained", start)
        experiment.run()
        models, _ = evaluate_models(
            experiment.sim,
            make_assessor(experiment.sim),
            experiment.pretrained,
            experiment.server.backbone,
            experiment._personal(),
        )
        multiplier = experiment.config.privacy.noise_multiplier
    facts = audit(folder, plan, source=source)
    for name in ("heads", "checkpoints", "pretrained", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {"noise_multiplier": multiplier} | utility_of(models) | privacy_of(facts)


def utility_of(models: Mapping[str, Any]) -> dict[str, float]:
    """1:1 and 1:N of the models."""
    found = {}
    for name, model in models.items():
        for generic in model.get("generic", {}).values():
            found[f"{name}/accuracy"] = generic["accuracy"]
        own = model["personalized"]
        found[f"{name}/rank1"] = own["rank1"]["mean"]
        rates = {float(rate): value["mean"] for rate, value in own["verification_tar"].items()}
        found[f"{name}/tar"] = rates[min(rates, key=lambda rate: abs(math.log(rate / 0.01)))]
    return found


def privacy_of(facts: Mapping[str, Any]) -> dict[str, float | None]:
    """The audit in single numbers; of membership the attack with the highest AUC."""
    found: dict[str, float | None] = {}
    for row in facts["membership"]["rows"]:
        name = f"auc/{row['model']}/{row['level']}"
        found[name] = max(row["auc"], found.get(name) or 0.0)
    seen = {row["observer"]: row for row in facts["inversion"]["rows"]}
    clear = seen["nothing done to it"]
    sent = seen.get("as it reaches the server", clear)
    released = seen.get("in the released sum", sent)
    for name, row in (("server", sent), ("released", released), ("clear", clear)):
        found[f"rank1/{name}"] = row["rank1"]
        found[f"accepted/{name}"] = row["accepted"]
        found[f"psnr/{name}"] = row["psnr"]
    found["rank1/originals"] = seen["the originals"]["rank1"]
    found["rank1/chance"] = seen["the originals"]["rank1_chance"]
    canary = facts["canary"]
    found["canary"] = max(canary["counted"], canary.get("gaussian") or 0.0)
    found["epsilon"] = canary["epsilon"]
    return found


def values_of(
    found: Mapping[str, Mapping], method: str, epsilon: float, seeds: Sequence[int], key: str
) -> list[float]:
    """A number of the cells that are there, one per seed."""
    cells = [found.get(key_of(method, epsilon, seed), {}) for seed in seeds]
    return [cell[key] for cell in cells if cell.get(key) is not None]


def table(found: Mapping[str, Mapping], seeds: Sequence[int]) -> str:
    """The results as Markdown: mean and standard deviation over the seeds."""

    def cell(method, epsilon, key, factor, digits):
        values = [factor * v for v in values_of(found, method, epsilon, seeds, key)]
        if not values:
            return "–"
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    lines = [f"| method | epsilon | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for method in METHODS:
        for epsilon in EPSILONS:
            if any(key_of(method, epsilon, seed) in found for seed in seeds):
                cells = [cell(method, epsilon, *how) for how in COLUMNS.values()]
                lines.append(f"| {method} | {epsilon:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_baselines(found, seeds)])


def _baselines(found: Mapping[str, Mapping], seeds: Sequence[int]) -> list[str]:
    """What the numbers are to be compared with."""
    cells = [cell for key, cell in found.items() if int(key.rsplit("/", 1)[1]) in seeds]
    if not cells:
        return []
    mean = {
        key: statistics.mean(cell[key] for cell in cells)
        for key in ("pretrained/accuracy", "pretrained/rank1", "rank1/originals", "rank1/chance")
    }
    return [
        f"Pretrained: accuracy {100 * mean['pretrained/accuracy']:.1f} %, rank 1 "
        f"{100 * mean['pretrained/rank1']:.1f} %. Re-identified from the images themselves: "
        f"{100 * mean['rank1/originals']:.1f} %, by chance {100 * mean['rank1/chance']:.1f} %."
    ]


def draw(found: Mapping[str, Mapping], seeds: Sequence[int], path: pathlib.Path) -> None:
    """Utility, membership, re-identification and epsilon's bounds over epsilon, as a PNG."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    panels: list[tuple[str, list[tuple[str, str, float]]]] = [
        (
            "utility (%)",
            [("global 1:1", "global/accuracy", 100), ("personal 1:N", "personalized/rank1", 100)],
        ),
        (
            "membership of images, AUC (chance: 0.5)",
            [
                ("global model", "auc/global/image (strangers)", 1),
                ("own model", "auc/personalized/image (strangers)", 1),
            ],
        ),
        (
            "re-identified (%)",
            [("message", "rank1/server", 100), ("released sum", "rank1/released", 100)],
        ),
        ("epsilon", [("canaries, at least", "canary", 1), ("accountant, at most", "epsilon", 1)]),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.2), layout="constrained")
    places = range(len(EPSILONS))
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for (method, color), marker in zip(
            zip(METHODS, ("#0072B2", "#D55E00"), strict=True), "os", strict=True
        ):
            for (label, key, factor), style in zip(lines, ("-", "--"), strict=True):
                cells = [values_of(found, method, e, seeds, key) for e in EPSILONS]
                means = [factor * statistics.mean(v) if v else math.nan for v in cells]
                spreads = [factor * statistics.pstdev(v) if v else math.nan for v in cells]
                name = f"{method}, {label}"
                axis.errorbar(
                    places, means, spreads, fmt=style, marker=marker, color=color, label=name
                )
        axis.set_xticks(places, [f"{e:g}" for e in EPSILONS])
        axis.set_xlabel("epsilon of the run")
        axis.set_title(title, loc="left", fontsize=10)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        place = "center" if "AUC" in title else "best"
        axis.legend(frameon=False, fontsize=7, handlelength=3.2, markerscale=0.8, loc=place)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def run_grid(
    folder: pathlib.Path,
    seeds: Sequence[int],
    *,
    methods: Sequence[str] = tuple(METHODS),
    epsilons: Sequence[float] = EPSILONS,
    changes: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    report: Callable[..., None] = print,
) -> dict[str, dict[str, Any]]:
    """Runs the cells that are missing, seed by seed, and writes after each.

    Args:
      folder: of the results, and of the cells' work directories.
      changes, plan: what differs from ``BASE`` and ``PLAN``, for a smaller grid.
    """
    import jax  # noqa: PLC0415

    from fedfr_jax.atomic import write_text  # noqa: PLC0415
    from fedfr_jax.audit.plan import Plan  # noqa: PLC0415
    from fedfr_jax.config import resolve  # noqa: PLC0415
    from fedfr_jax.data import open_source  # noqa: PLC0415
    from fedfr_jax.data.types import remembering  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for seed in seeds:
        source = None
        for method in methods:
            for epsilon in epsilons:
                key, started = key_of(method, epsilon, seed), time.process_time()
                if key in found:
                    continue
                settings = settings_of_cell(method, epsilon, seed, changes)
                if source is None:
                    source = remembering(open_source(resolve(settings).data))
                own = dataclasses.replace(Plan(**{**PLAN, **(plan or {})}), seed=seed)
                where = folder / key.replace("/", "-").lower()
                found[key] = run_cell(settings, where, folder / f"pretrained-{seed}", own, source)
                found[key]["cpu_seconds"] = time.process_time() - started
                write_text(path, json.dumps(found, indent=1) + "\n")
                report(key, {k: v for k, v in found[key].items() if "/" not in k})
                jax.clear_caches()
                gc.collect()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/privacy-utility"))
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--epsilons", default=",".join(f"{e:g}" for e in EPSILONS))
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    found = run_grid(
        arguments.folder,
        seeds,
        methods=arguments.methods.split(","),
        epsilons=[float(e) for e in arguments.epsilons.split(",")],
    )
    text = table(found, seeds)
    (arguments.folder / "table.md").write_text(text + "\n")
    draw(found, seeds, arguments.folder / "privacy-utility.png")
    print(text)


if __name__ == "__main__":
    main()
