"""The matrix of generators: what a detector has seen is never in its headline."""

import json

import numpy as np
import pytest

from anomaly import GENERATORS
from benchmarks.anomaly import bench_anomaly_generators as bench

NAMES = list(GENERATORS)
RATES = [0.01, 0.02]


def part(seed, rows, commit="0123456789abcdef"):
    """Give a stored part: by row what an unseen and a seen generator scores."""
    table = {}
    for row, (unseen, seen) in rows.items():
        scores = {name: [seen if name in bench.seen_by(row) else unseen + 0.01 * k for k in range(4)] for name in NAMES}
        table[row] = {"auc": scores, "ap": scores, "false_positive_rate": RATES}
    prevalence = {name: [0.01] * 4 for name in NAMES}
    seconds = {"simulation": 1.0}
    return {"seed": seed, "rows": table, "prevalence": prevalence, "seconds": seconds, "commit": commit}


def test_the_diagonal_is_never_in_the_headline():
    rows = {f"trees, {name}": (0.3, 1.0) for name in NAMES}
    rows |= {"implants": (0.3, 1.0), bench.REFERENCE: (0.2, 0.2)}
    found = bench.summarized([part(1, rows), part(2, rows)])
    for row in rows:
        # Changing what is seen changes nothing.
        expected = (0.2 if row == bench.REFERENCE else 0.3) + 0.015
        assert found[row]["headline"]["ap"][0] == pytest.approx(expected)
    worse = bench.summarized([part(1, {row: (own, 0.0) for row, (own, _) in rows.items()})])
    assert worse["trees, patches"]["headline"]["ap"][0] == pytest.approx(0.315)
    assert found["implants"]["ap"]["gliomas"] == 1.0


def test_one_draw_of_persons_serves_all_generators():
    one = part(1, {bench.REFERENCE: (0.2, 0.2)})
    persons = np.random.default_rng(0).standard_normal(40)
    # Where generators cancel within each person there is nothing to draw.
    signs = dict(zip(NAMES, (1, -1, 1, -1, 0), strict=True))
    one["rows"][bench.REFERENCE]["ap"] = {name: (0.5 + sign * persons).tolist() for name, sign in signs.items()}
    assert tuple(bench.summarized([one])[bench.REFERENCE]["headline"]["ap"]) == (0.5, 0.5, 0.5)


def test_persons_without_a_scored_lesion_keep_their_place():
    rows = {"implants": (0.3, 1.0), bench.REFERENCE: (0.2, 0.2)}
    one = part(1, rows)
    for row in rows:
        for key in ("auc", "ap"):
            # The lists of all generators may be one object.
            scores = {name: list(values) for name, values in one["rows"][row][key].items()}
            scores["patches"][0] = None
            one["rows"][row][key] = scores
    found = bench.summarized([json.loads(json.dumps(one))])
    assert found["implants"]["ap"]["patches"] == pytest.approx(0.32)
    assert found["implants"]["headline"]["ap"][0] == pytest.approx(0.315 + 0.005 / 4, abs=1e-4)
    assert np.isfinite(found["implants"]["headline"]["ap"]).all()
    assert found["implants"]["minus_reference"]["ap"] == pytest.approx([0.1] * 3)
    assert found["implants"]["minus_reference"]["by_generator"]["patches"] == pytest.approx(0.1)


def test_trees_without_a_generator_are_read_where_it_is_tested():
    rows = {f"trees without {name}": (0.4, 0.9) for name in NAMES} | {bench.REFERENCE: (0.2, 0.2)}
    found = bench.summarized([part(1, rows)])
    assert set(found) == {"trees, all but the tested one", bench.REFERENCE}
    joined = found["trees, all but the tested one"]
    assert all(value == pytest.approx(0.415) for value in joined["ap"].values())
    assert joined["minus_reference"]["ap"][0] == pytest.approx(0.2)


def test_differences_are_of_the_same_persons_and_their_interval_knows_seeds():
    rows = {"implants": (0.3, 1.0), bench.REFERENCE: (0.2, 0.2)}
    found = bench.summarized([part(1, rows), part(2, rows | {"implants": (0.4, 1.0)})])
    center, low, high = found["implants"]["minus_reference"]["ap"]
    # Both scores grow from person to person alike, so that seeds alone make the interval.
    assert center == pytest.approx(0.15)
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.2))
