"""Personalized and template protocols against stored results of a float64 evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import GOLDEN

from fedfr_jax.evaluation.personalized import personal_identification, personal_verification
from fedfr_jax.evaluation.templates import pool_templates, template_verification


def _cases() -> list[Path]:
    found = []
    for path in sorted(GOLDEN.glob("*.npz")):
        with np.load(path, allow_pickle=False) as case:
            if "personal_verification_tar" in case.files:
                found.append(path)
    return found


CASES = _cases()
pytestmark = pytest.mark.skipif(not CASES, reason=f"no stored evaluation in {GOLDEN}")


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request) -> dict[str, np.ndarray]:
    with np.load(request.param, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _one_comparison(got, stored, comparisons: int) -> None:
    flipped = np.abs(np.asarray(got) - stored) * comparisons
    assert np.all(flipped <= 1 + 1e-6), f"{flipped} comparisons differ"


@pytest.mark.parametrize("block", [4096, 37])
@pytest.mark.parametrize("on_device", [False, True])
def test_personal_verification(case, block, on_device):
    per_client = int(case["identities_per_client"])
    for client in range(int(case["num_clients"])):
        own = case["probe_labels"] // per_client == client
        result = personal_verification(
            case["probe_features"],
            case["probe_labels"],
            own,
            case["fars"],
            block=block,
            on_device=on_device,
        )
        _one_comparison(result.tar, case["personal_verification_tar"][client], result.num_positives)


@pytest.mark.parametrize("block", [4096, 37])
def test_personal_identification(case, block):
    per_client = int(case["identities_per_client"])
    for client in range(int(case["num_clients"])):
        result = personal_identification(
            case["probe_features"],
            case["probe_labels"],
            case["gallery_features"],
            case["gallery_labels"],
            np.arange(per_client) + client * per_client,
            fpirs=case["fars"],
            block=block,
        )
        _one_comparison(
            result.pair_tpir, case["personal_identification_pair_tpir"][client], result.num_mated
        )
        _one_comparison(
            result.open_set_tpir,
            case["personal_identification_openset_tpir"][client],
            result.num_mated,
        )


def test_templates(case):
    ids, features = pool_templates(
        case["image_features"], case["detector_scores"], case["template_ids"], case["media_ids"]
    )
    np.testing.assert_allclose(features, case["template_features"], rtol=0, atol=1e-6)
    result = template_verification(
        ids,
        features,
        case["pair_template_1"],
        case["pair_template_2"],
        case["pair_labels"],
        fars=case["fars"],
    )
    np.testing.assert_allclose(result.scores, case["pair_scores"], rtol=0, atol=2e-6)
    _one_comparison(result.tar, case["template_verification_tar"], int(case["pair_labels"].sum()))
