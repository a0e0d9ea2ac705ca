"""How hostile and unreliable clients change the generic model, under each way of averaging.

    python -m benchmarks.robustness --folder=runs/robustness

Generated faces, a small SphereNet, 20 clients, FedAvg from a pretrained backbone. Every
cell is the accuracy of the global model on pairs of people that nobody trained on: mean and
standard deviation over seeds. Finished cells are kept in the folder.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

BASE: dict[str, Any] = {
    "method": {"name": "fedavg"},
    "data": {
        "image_size": 32,
        "generated": {
            "identities": 200,
            "images_per_identity": (12, 12),
            "difficulty": 0.5,
        },
        "split": {
            "client_fraction": 0.56,
            "identities_per_client": (4, 4),
            "verification_images": 2,
            "held_out_identities": 50,
            "held_out_pairs": 1500,
        },
    },
    "model": {"depth": 4, "widths": (8, 16, 32, 32), "embedding": 32},
    "pretrain": {"epochs": 8, "batch_size": 16, "lr": 0.02},
    "fed": {
        "num_clients": 20,
        "rounds": 5,
        "batch_size": 10,
        "local_epochs": (3,),
        "lr_decay_epochs": (3,),
        "lr": 0.02,
        "aggregation": "uniform",
        "on_bad_update": "quarantine",
    },
    "eval": {"clients": 1, "fars": (0.01, 0.1), "every": 0, "variants": False, "examples": 0},
    "engine": {"lanes": 1, "conv": "custom", "cpu_devices": 1},
    "checkpoint": {"every": 1000},
}
RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "norm_clip": {"aggregator": "norm_clip", "clip_radius": 1.0},
    "centered_clip": {"aggregator": "centered_clip", "clip_radius": 1.0},
    "median": {"aggregator": "median"},
    "trimmed_mean": {"aggregator": "trimmed_mean"},
    "krum": {"aggregator": "krum"},
    "multi_krum": {"aggregator": "multi_krum"},
    "geometric_median": {"aggregator": "geometric_median"},
}
SCENES: dict[str, dict[str, Any]] = {
    "clean": {},
    "sign flip": {"hostile": {"fraction": 0.2, "attack": "sign_flip", "strength": 10.0}},
    "dropouts": {"population": {"dropout": 0.15, "late_dropout": 0.15}},
}


def cells() -> list[tuple[str, str]]:
    """(scene, rule) of all cells; dropouts only with the mean."""
    return [
        (scene, rule) for scene in SCENES for rule in RULES if scene != "dropouts" or rule == "mean"
    ]


def accuracy(scene: str, rule: str, seed: int, cache: pathlib.Path) -> dict[str, float]:
    """Of the pretrained and of the global model; the seed is that of data and training."""
    # Imported here: the environment is set before JAX starts.
    import jax  # noqa: PLC0415

    from fedfr_jax.config import merged  # noqa: PLC0415
    from fedfr_jax.evaluation import assess  # noqa: PLC0415
    from fedfr_jax.experiment import Experiment  # noqa: PLC0415
    from fedfr_jax.reporting.results import make_assessor  # noqa: PLC0415
    from fedfr_jax.runtime.pretrained import copy_pretrained  # noqa: PLC0415

    settings = merged(merged(BASE, {"fed": RULES[rule]}), SCENES[scene])
    settings = merged(settings, {"seed": seed, "data": {"seed": seed}})
    folder = cache / f"{scene.replace(' ', '-')}-{rule}-{seed}"
    start = cache / f"pretrained-{seed}"
    if start.is_dir():
        copy_pretrained(start, folder / "pretrained")
    with Experiment(settings, folder, resume=True) as experiment:
        if not start.is_dir():
            copy_pretrained(folder / "pretrained", start)
        rows = experiment.run()
        assessor = make_assessor(experiment.sim)
        found = {}
        models = {"pretrained": experiment.pretrained, "global": experiment.server.backbone}
        for name, variables in models.items():
            result = assess.summarize(assess.assess_shared(assessor, jax.device_get(variables)))
            [generic] = result["generic"].values()
            found[name] = generic["accuracy"]
    norms = [row["update_norm"] for row in rows if "update_norm" in row]
    return found | ({"update_norm": statistics.median(norms)} if norms else {})


def table(found: dict[str, dict[str, float]], seeds: list[int]) -> str:
    """The results as Markdown."""

    def cell(scene, rule, model="global"):
        values = [
            100 * found[f"{scene}/{rule}/{seed}"][model]
            for seed in seeds
            if f"{scene}/{rule}/{seed}" in found
        ]
        if not values:
            return "–"
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    lines = ["| rule | clean | 20 % sign flip | 30 % dropouts |", "|---|---|---|---|"]
    lines += [f"| {rule} | {' | '.join(cell(scene, rule) for scene in SCENES)} |" for rule in RULES]
    return "\n".join(
        [*lines, f"| pretrained, no rounds | {cell('clean', 'mean', 'pretrained')} | | |"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/robustness"))
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--cells", default="", help="scene/rule, comma-separated; default: all")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    wanted = [tuple(c.split("/")) for c in arguments.cells.split(",") if c] or cells()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    for seed in seeds:
        for scene, rule in wanted:
            key, started = f"{scene}/{rule}/{seed}", time.process_time()
            if key not in found:
                found[key] = accuracy(scene, rule, seed, arguments.folder)
                found[key]["cpu_seconds"] = time.process_time() - started
                path.write_text(json.dumps(found, indent=1) + "\n")
                print(key, found[key], flush=True)
    print(table(found, seeds))


if __name__ == "__main__":
    main()
