"""The claims of Huang et al. are decided by their rules."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.claims.claim_board import EQUAL, FAILS, HOLDS, LEAST_SEEDS, OPEN, read_margins
from benchmarks.claims.huang import (
    CLAIMS,
    MARGINS,
    MARGINS_FILE,
    WORLDS,
    claim_figures,
    decide_claims,
)

PARTS = ("all", "with prior", "without prior")
STATUSES = ("new", "grown", "stable")
CURVE = ["threshold", "sensitivity", "precision", "false_positives_per_scan"]


def published(**changed):
    """Tables with the study's own figures; what it does not print is made to agree with what it states."""
    frame = pd.read_csv(Path(__file__).parent / "data" / "huang.csv", index_col="method")
    for name in ("JVSS 0.995, prior", "JVSS 0.995, prior as channel"):
        frame.loc[f"{name}, moved"] = frame.loc[name]
    for key, value in changed.items():
        method, measure = key.split("__")
        frame.loc[method.replace("_", " "), measure] = value
    summary = pd.concat([frame.reset_index().assign(part=part) for part in PARTS], ignore_index=True)
    areas = [
        {"name": "JVSS", "kind": "family", "area": 0.9, "area_plain": 0.9471},
        {"name": "SSE", "kind": "family", "area": 0.85, "area_plain": 0.8985},
        {"name": "BCE", "kind": "thresholds", "area": 0.8, "area_plain": 0.85},
    ]
    points = [(0.05, 0.95, 0.2, 6.0), (0.1, 0.92, 0.3, 3.0), (0.5, 0.853, 0.691, 1.0), (0.9, 0.7, 0.9, 0.2)]
    curve = pd.DataFrame(points, columns=CURVE).assign(method="BCE")
    matched = [
        {"method": method, "part": part, "sensitivity": level, "new": 0.95, "grown": 0.9, "stable": 0.85}
        | {"false_positives_per_scan": frame.loc[method, "n_false_positives"] / 103}
        for method, part, level in itertools.product(frame.index, PARTS, (0.85, 0.9, 0.95))
    ]
    review = {"method": "ensemble", "sensitivity": 0.932, "both_sensitivity": 0.842}
    review["false_candidates_per_scan"] = 1.5
    status = [
        {"method": method, "status": name, "sensitivity": frame.loc[method, "sensitivity"]}
        for method, name in itertools.product(frame.index, STATUSES)
    ]
    return {"status": pd.DataFrame(status), "summary": summary, "areas": pd.DataFrame(areas), "curves": curve, "ensemble": pd.DataFrame([review])} | {
        "matched": pd.DataFrame(matched)
    }


def copied(figures, **columns):
    """The figures of one run as those of further worlds or seeds."""
    (name, values), = columns.items()
    return pd.concat([figures.assign(**{name: value}) for value in values], ignore_index=True)


def board(tables, *others, n_seeds=LEAST_SEEDS, worlds=WORLDS, **options):
    """Decide by seeds with the same tables in each world, the last of them others."""
    seeds = map(str, range(n_seeds - len(others)))
    figures = [copied(claim_figures({("", ""): tables}), run=seeds)]
    for seed, other in enumerate(others):
        figures.append(claim_figures({("", f"other {seed}"): other}))
    return decide_claims(copied(pd.concat(figures), condition=worlds), **options).set_index("claim")


def test_the_published_figures_bear_out_what_is_stated_and_margins_are_settled_for_every_reading():
    found = board(published())
    assert len(found) == len(CLAIMS)
    assert set(found["verdict"]) == {HOLDS}
    assert not found["ours"].eq("").any()
    assert {name: margin.whose for name, margin in MARGINS.items()} == dict.fromkeys(MARGINS, "ours")
    settled = read_margins(MARGINS_FILE)[1]
    assert {claim.number: claim.readings[0].name for claim in CLAIMS} == {
        number: fields["primary"] for number, fields in settled.items()
    }
    assert set(board(published(), factor=1000).loc[[2, 8, 10], "verdict"]) == {EQUAL}


@pytest.mark.parametrize(
    ("claim", "changed"),
    [
        (1, {"BCE__precision": 0.4}),
        (2, {"JVSS_0.9__segment_specificity": 0.99}),
        (2, {"JVSS_0.5__sensitivity": 1.0}),
        (3, {"JVSS_0.995__sensitivity": 0.9}),
        (4, {"JVSS_0.995__false_positives_per_scan": 12}),
        (5, {"JVSS_0.5__precision": 0.8}),
        (6, {"JVSS_0.995__mDSC": 0.768}),
        (7, {"JVSS_0.95__precision": 0.29}),
        (9, {"VSS_0.95__mDSC": 0.5}),
        (10, {"JVSS_0.995,_prior__n_false_positives": 320}),
        (11, {"JVSS_0.995,_prior__n_false_positives": 252}),
        (14, {"ensemble__false_positives_per_scan": 5}),
        (12, {"JVSS_0.995,_prior,_moved__n_false_positives": 300}),
        (13, {"ensemble__sensitivity": 0.9}),
        (13, {"ensemble,_marked_by_both__precision": 0.8}),
        (15, {"BCE,_U-Net__f1": 0.8}),
        (16, {"JVSS_0.5,_U-Net__precision": 0.6}),
    ],
)
def test_a_figure_beyond_its_limit_refutes_a_claim(claim, changed):
    assert board(published(**changed)).loc[claim, "verdict"] == FAILS


def test_what_was_not_run_cannot_be_told():
    tables = published()
    for name in ("summary", "matched"):
        tables[name] = tables[name][~tables[name]["method"].str.contains("U-Net|channel")]
    found = board(tables)
    assert set(found.loc[[12, 15, 16], "verdict"]) == {OPEN}
    assert "missing" in found.loc[15, "reason"]
    assert found.loc[3, "verdict"] == HOLDS


def test_priors_are_judged_where_both_find_as_many_lesions():
    tables = published(**{"JVSS_0.995,_prior__sensitivity": 0.5, "JVSS_0.995,_prior__false_positives_per_scan": 9})
    # What the operating points gave does not matter.
    assert board(tables).loc[10, "verdict"] == HOLDS
    matched = tables["matched"]
    is_prior = (matched["method"] == "JVSS 0.995, prior") & (matched["part"] == "with prior")
    matched.loc[is_prior & (matched["sensitivity"] == 0.85), "false_positives_per_scan"] = 3.2
    matched.loc[is_prior, "stable"] = 0.7
    found = board(tables).loc[10]
    assert found["verdict"] == HOLDS
    assert f"at .85: {FAILS}" in found["readings"]
    assert f"by status: {FAILS}" in found["readings"]
    matched.loc[is_prior, "false_positives_per_scan"] = np.nan
    assert board(tables).loc[10, "verdict"] == OPEN


def test_claims_are_decided_in_each_world():
    worse = published(**{"JVSS_0.995,_prior__n_false_positives": 320})
    worlds = {"old phantom": published(), "hard world": worse}
    figures = claim_figures({(world, ""): tables for world, tables in worlds.items()})
    found = decide_claims(copied(figures, run=map(str, range(LEAST_SEEDS)))).set_index("claim")
    assert found.loc[10, "verdict"] == "depends on the world"
    assert found.loc[3, "verdict"] == HOLDS
    assert "hard world" in found.loc[10].to_string()
    alone = board(published(), worlds=["hard world"])
    assert set(alone["verdict"]) == {OPEN}
    assert alone.loc[3, "reason"].startswith("missing: old phantom")
