"""The grid of privacy against utility, on two cells of a tiny federation."""

import json
import math

import pytest
import small  # noqa: F401 - registers the tiny network

from benchmarks import privacy_utility
from fedfr_jax.config import resolve

TINY = {
    "data": {
        "image_size": 16,
        "generated": {"identities": 40, "images_per_identity": (6, 6)},
        "split": {
            "held_out_identities": 10,
            "held_out_pairs": 40,
            "client_fraction": 0.6,
            "verification_images": 2,
            "public_identities": 8,
        },
    },
    "model": {"name": "tiny", "embedding": 8},
    "pretrain": {"epochs": 1},
    "fed": {"num_clients": 4, "rounds": 2},
    "engine": {"cpu_devices": 0},
}
PLAN = {"people": 8, "clients": 2, "shadows": 4, "targets": 2, "steps": 5, "canaries": 20}


@pytest.mark.slow
def test_cells_are_run_once_and_tabulated(tmp_path):
    said = []
    cells = {"methods": ["FedAvg"], "epsilons": [math.inf, 8.0], "changes": TINY, "plan": PLAN}
    found = privacy_utility.run_grid(tmp_path, [3], report=lambda key, _: said.append(key), **cells)
    assert said == ["FedAvg/inf/3", "FedAvg/8/3"] == list(found)
    assert found["FedAvg/8/3"]["epsilon"] == pytest.approx(8, rel=0.01)
    assert found["FedAvg/inf/3"]["epsilon"] is None
    assert 0 < found["FedAvg/8/3"]["canary"] < 10
    assert not (tmp_path / "fedavg-8-3" / "checkpoints").exists()
    again = privacy_utility.run_grid(tmp_path, [3], report=said.append, **cells)
    assert again == json.loads((tmp_path / "results.json").read_text()) and len(said) == 2
    text = privacy_utility.table(found, [3])
    assert text.count("| FedAvg |") == 2 and "Pretrained: accuracy" in text
    privacy_utility.draw(found, [3], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("method", privacy_utility.METHODS)
def test_settings_of_all_cells_can_be_used(method):
    for epsilon in privacy_utility.EPSILONS:
        config = resolve(privacy_utility.settings_of_cell(method, epsilon, 1))
        assert config.privacy.target_epsilon == (0 if math.isinf(epsilon) else epsilon)
        assert config.fed.num_clients >= 256 and config.population.cohort == 0
        assert config.seed == config.data.seed == 1


def test_a_table_of_several_seeds_has_spreads():
    rows = {key: float(k) for k, (key, _, _) in enumerate(privacy_utility.COLUMNS.values())}
    rows |= {"pretrained/accuracy": 0.5, "pretrained/rank1": 0.5}
    rows |= {"rank1/originals": 1.0, "rank1/chance": 0.25}
    found = {f"FedFR/4/{seed}": {k: v + seed for k, v in rows.items()} for seed in (0, 2)}
    text = privacy_utility.table(found, [0, 2])
    assert "| FedFR | 4 | 1.00 ± 1.41 |" in text and "FedAvg" not in text
