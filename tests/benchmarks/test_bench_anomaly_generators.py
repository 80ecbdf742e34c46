"""The matrix of generators: what a detector has seen is never in its headline."""

import argparse
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
        scores = {
            name: [seen if name in bench.seen_by(row) else unseen + 0.01 * k for k in range(4)]
            for name in NAMES
        }
        table[row] = {"auc": scores, "ap": scores, "false_positive_rate": RATES}
    prevalence = {name: [0.01] * 4 for name in NAMES}
    seconds = {"simulation": 1.0}
    return {"seed": seed, "rows": table, "prevalence": prevalence, "seconds": seconds, "commit": commit}


def test_seen_generators_are_those_that_a_row_has_learned():
    assert bench.seen_by("trees, patches") == ("patches",)
    assert bench.seen_by("trees without patches") == tuple(n for n in NAMES if n != "patches")
    assert bench.seen_by("implants and patches") == ("gliomas", "patches")
    assert bench.seen_by("RecDiscNet mix half, 1×, not smoothed") == ("ellipsoids",)
    for row in (bench.REFERENCE, "DAE, 1× / healthy residual", "z, one-sided"):
        assert bench.seen_by(row) == ()


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
    rng = np.random.default_rng(0)
    persons = rng.standard_normal(40)
    # Where generators cancel within each person there is nothing to draw.
    signs = dict(zip(NAMES, (1, -1, 1, -1, 0), strict=True))
    scores = {name: (0.5 + sign * persons).tolist() for name, sign in signs.items()}
    one["rows"][bench.REFERENCE]["ap"] = scores
    center, low, high = bench.summarized([one])[bench.REFERENCE]["headline"]["ap"]
    assert (center, low, high) == (0.5, 0.5, 0.5)


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


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ((0.3, 1.0), "implants beat aligned Mahalanobis"),
        ((0.22, 1.0), "No detector that learns lesions beats"),
    ],
)
def test_the_page_says_whether_a_detector_that_learns_lesions_wins(own, words):
    rows = {"implants": own, bench.REFERENCE: (0.2, 0.2), "trees, gliomas": (0.9, 1.0)}
    found = bench.summarized([part(1, rows), part(2, rows)])
    text = bench.verdict({"rows": found})
    assert words in text
    assert "trees" not in text
    assert "1: 1.0, 2.0; 2: 1.0, 2.0" in text


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([0.01, 0.02], "mean 1.50 %, worst 2.0 %. The aim of a mean of 0.5 to 1.5 % and at most 3 % in each is met"),
        ([0.001, 0.032], "worst 3.2 %. The aim of a mean of 0.5 to 1.5 % and at most 3 % in each is not met"),
        ([0.002, 0.004], "is not met"),
    ],
)
def test_the_page_says_whether_healthy_scans_stay_below_the_aim(rates, words):
    one = part(1, {bench.REFERENCE: (0.2, 0.2)})
    one["rows"][bench.REFERENCE]["false_positive_rate"] = rates
    assert words in bench.verdict({"rows": bench.summarized([one])})


def test_what_is_stored_at_the_same_settings_is_not_repeated(tmp_path, monkeypatch):
    done = []

    def scored(name, size, seed):
        done.append((name, seed))
        return {"part": name} | part(seed, {bench.REFERENCE: (0.2, 0.2)}, commit=f"{seed}" * 40)

    monkeypatch.setattr(bench, "scored_part", scored)
    out = tmp_path / "result.json"
    for seeds in ([1], [1, 2]):
        result = bench.run(argparse.Namespace(seeds=seeds, parts=["aligned", "networks-1"], quick=True, out=out))
    assert done == [(name, seed) for seeds in ([1], [2]) for name in ("aligned", "networks-1") for seed in seeds]
    assert len(list((tmp_path / "result").glob("*.json"))) == 4
    text = bench.markdown(json.loads(json.dumps(result)) | {"date": "", "commit": "3" * 40})
    assert "(ellipsoids 1.0 %" in text
    # Parts of an earlier commit are named as such.
    assert result["part_commits"] == ["1" * 40, "2" * 40]
    assert "measured at 1111111111, 2222222222, summarized" in text
    assert np.isfinite(result["processor_s"])

