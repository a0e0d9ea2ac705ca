"""Metrics where a rounding or a tie decides."""

from __future__ import annotations

import numpy as np
import pytest

from fedfr_jax.evaluation import assess, identification, personalized, scores, streaming
from fedfr_jax.reporting import tables


@pytest.mark.parametrize(
    ("rate", "count", "floor", "ceiling"),
    [(0.07, 100, 7, 7), (0.29, 100, 29, 29), (1e-5, 300_000, 3, 3), (1e-3, 1500, 1, 2)],
)
def test_ranks_are_of_the_decimal_that_was_written(rate, count, floor, ceiling):
    assert streaming.threshold_ranks([rate], count).tolist() == [floor]
    assert identification.pair_ranks([rate], count).tolist() == [ceiling]


def test_a_power_of_ten_is_resolved_by_as_many_scores():
    for power in range(1, 7):
        assert streaming.far_is_resolvable([10.0**-power], 10**power).all()
        seen = streaming.far_is_resolvable(personalized.ROC_FARS, 10**power)
        assert personalized.ROC_FARS[seen][0] == 10.0**-power


def test_the_pair_rule_resolves_more_than_one_error():
    np.testing.assert_array_equal(
        identification.pair_is_resolvable([0.005, 0.01, 0.011], 100), [False, False, True]
    )


@pytest.mark.parametrize("dim", [8, 512])
def test_scores_do_not_depend_on_blocks_and_copies_tie(dim):
    rng = np.random.default_rng(4)
    unit = streaming.unit_rows(rng.standard_normal((300, dim)))
    unit[200:] = unit[:100]
    found = []
    for block in (1, 256, 300, 4096):
        blocks = scores.padded_blocks(unit, block)
        found.append(
            np.block(
                [
                    [
                        np.asarray(scores.score_block(rows, columns))[:nr, :nc]
                        for _, nc, columns in blocks
                    ]
                    for _, nr, rows in blocks
                ]
            )
        )
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    np.testing.assert_array_equal(found[0][200:], found[0][:100])
    assert (np.diag(found[0]) == 1).all()
    np.testing.assert_allclose(found[0], unit.astype(np.float64) @ unit.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [1, 2, 3, 4096])
def test_a_tie_with_the_threshold_is_not_accepted(block):
    for seed in range(20):
        a, b = np.random.default_rng(seed).standard_normal((2, 37))
        got = personalized.personal_verification(
            [a, a, b, b], [0, 0, 1, 2], np.ones(4, bool), [0.1], block=block
        )
        assert got.tar.tolist() == [0]


def test_the_pair_rule_is_marked_where_it_is_not_resolved():
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(6), 5)
    features = rng.standard_normal((30, 8))
    one = personalized.personal_verification(features, labels, labels < 2, [0.01, 0.1])
    many = personalized.personal_identification(
        features, labels, features, labels, [0, 1], fpirs=[0.01, 0.1]
    )
    summary = {"models": {"global": assess.summarize(assess.Assessment({}, (one,), (many,)))}}
    table = {t.title: t for t in tables.closing_tables(summary)}[
        "Personalized identification (1:N), pair rule"
    ]
    ((_, cells),) = table.rows
    assert [cell.unresolvable for cell in cells] == [True, False]  # 0.3 and 3 errors are allowed
    assert any("too few probes" in note for note in table.notes)


@pytest.mark.parametrize(("clients", "said"), [(10, True), (40, False)])
def test_tables_say_that_clients_were_drawn(clients, said):
    spread = {"mean": 0.5, "std": 0.1, "min": 0.4, "worst10": 0.4, "max": 0.6}
    summary = {
        "evaluated": {"clients": clients, "of": 40},
        "models": {
            "global": {
                "generic": {"s": {"accuracy": 0.5}},
                "personalized": {
                    "verification_tar": {"0.001": spread},
                    "identification_openset": {"0.01": spread},
                    "rank1": spread,
                },
            }
        },
    }
    found = [*tables.closing_tables(summary), tables.spread_table(summary)]
    notes = {
        table.title: any("10 of 40 clients" in note for note in table.notes) for table in found
    }
    assert not notes.pop("Generic verification: s")
    assert len(notes) == 4 and set(notes.values()) == {said}


def _curve(negatives, tar):
    seen = streaming.far_is_resolvable(personalized.ROC_FARS, negatives)
    nothing = np.zeros(0)
    return personalized.PersonalVerification(
        nothing, nothing, nothing, nothing, 1, negatives, np.where(seen, tar, np.nan)
    )


def test_every_point_of_the_mean_curve_averages_the_same_clients():
    rising = np.linspace(0.2, 0.9, 36)
    results = [_curve(10**6, rising), _curve(100, np.full(36, 0.1)), _curve(1, rising)]
    far, tar = personalized.mean_roc(results)
    assert far[0] == 0.01 and len(far) == 12  # the third client resolves nothing
    np.testing.assert_allclose(tar, (rising[-12:] + 0.1) / 2)
    assert np.all(np.diff(tar) >= 0)
    empty = personalized.mean_roc(results[2:])
    assert [len(part) for part in empty] == [0, 0]
