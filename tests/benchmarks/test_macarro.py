"""The claims of Macarro et al., from made-up studies in which each holds, fails or is open, and their long run."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import _boards as claim_boards
from benchmarks.claims.claim_board import (
    BOARD_COLUMNS,
    EQUAL,
    FAILS,
    FIGURE_COLUMNS,
    HOLDS,
    NOT_SIMULATED,
    OPEN,
    read_margins,
)
from benchmarks.claims.macarro.board import (
    CLAIMS,
    MARGINS_FILE,
    claim_figures,
    claims_board,
    decide_claims,
)
from benchmarks.prediction import bench_claims

METRICS = ("S0", "f", "Dv", "T2v", "Dt", "K", "T2t")
ALGORITHMS = ("LR", "GBR", "mlNN")
COHORTS = ("c1", "c2")
STRATEGIES = ("s2s", "m2m")
SIZES = (1, 2, 5, 8, 12)
SILENT = "depends on the training region, on which the letter is silent"

# In this study every claim holds. What a factor multiplies is abs(BI); DI is three times, and the median of abs(E)
# twice as large.
HOLDING = {
    "level": {"s2s": 0.10, "m2m": 0.15},
    "metric": {
        "s2s": dict(zip(METRICS, (9.0, 1.0, 1.2, 0.9, 0.8, 1.1, 1.0), strict=True)),
        "m2m": dict(zip(METRICS, (9.0, 1.0, 1.9, 0.6, 0.5, 1.2, 1.3), strict=True)),
    },
    "cohort": {"c1": 1.0, "c2": 1.1},
    "curve": {1: 1.4, 2: 1.2, 5: 1.02, 8: 0.99, 12: 1.0},
    "mlnn_at_two": 1.05,
    "fluctuation": {"Dv": {5: 0.06, 8: -0.05, 12: 0.0}},
    # Algorithms differ by this much of the level, one way in even patients and the other way in odd ones.
    "disagreement": {"s2s": 0.003, "m2m": 0.02},
    # And by this much in all of them.
    "difference": {"s2s": 0.001, "m2m": 0.001},
    "signal_error": 0.08,
    "signal_r": 0.9,
    "metric_r": {"s2s": 0.6, "m2m": 0.3},
}


def amount(world, metric, strategy, cohort, algorithm, size, k):
    """Give abs(BI) of patient k."""
    level = world["level"][strategy] * world["metric"][strategy][metric] * world["cohort"][cohort]
    early = algorithm == "mlNN" and size == 2
    level *= world["mlnn_at_two"] if early else world["curve"][size]
    level *= 1 + world["fluctuation"].get(metric, {}).get(size, 0.0)
    place = ALGORITHMS.index(algorithm) - 1
    apart = world["disagreement"][strategy] * (-1) ** k + world["difference"][strategy]
    return level * (1 + 0.01 * k) * (1 + apart * place)


def study(seed=0, region="body", difficulty="mixed", **changes):
    """Make an evaluation up."""
    world = {**HOLDING, **changes}
    scores, signals = [], []
    cells = itertools.product(COHORTS, STRATEGIES, (*ALGORITHMS, "constant"), SIZES, range(8))
    for cohort, strategy, algorithm, size, k in cells:
        control, r = algorithm == "constant", world["metric_r"][strategy]
        if control and size != max(SIZES):
            continue
        keys = {"cohort": cohort, "patient": f"{cohort}p{k}", "strategy": strategy, "algorithm": algorithm}
        keys |= {"train_on": "same", "n_train": size, "repeat": 0, "estimator": f"{strategy} {algorithm}"}
        for metric in METRICS:
            value = 99.0 if control else amount(world, metric, strategy, cohort, algorithm, size, k)
            value *= 1 + 0.001 * seed
            row = {"metric": metric, "bias": value * (-1) ** (k // 2), "dispersion": 3 * value, "pearson": 0.0 if control else r}
            row |= dict.fromkeys(("median_abs_error", "median_abs_error_truth"), 2 * value)
            scores.append(keys | row | {"pearson_truth": r})
        error = 9.0 if control else world["signal_error"] * (1 + 0.01 * k)
        for contrast, signal_r in (("b100_te105", None), ("b1600_te120", None), ("all unseen", 0.99)):
            signals.append(keys | {"contrast": contrast, "relative_error": error, "pearson": signal_r or world["signal_r"]})
    simulation = None if difficulty is None else {"difficulty": difficulty, "seed": seed}
    settings = {"seed": seed, "train_mask": region, "score_mask": "lesion"}
    cohorts = {name: {"synthetic": difficulty is not None, "simulation": simulation} for name in COHORTS}
    described = {"settings": settings, "cohorts": cohorts}
    return SimpleNamespace(scores=pd.DataFrame(scores), signals=pd.DataFrame(signals), study=described)


def studies(regions=("body", "lesion"), difficulties=("easy", "mixed"), changed=lambda r, d: True, **changes):
    """Make studies of several conditions; the changes are made where `changed` says."""
    places = itertools.product(regions, difficulties)
    return [study(0, *place, **(changes if changed(*place) else {})) for place in places]


def measured(**changes):
    """Make studies of scans of patients, which have no preset: two conditions instead of four."""
    return studies(difficulties=(None,), **changes)


def repeated(evaluations, seeds=10, claims=None):
    """Give the figures of one seed as those of several: made-up studies of other seeds say the same."""
    figures = claim_figures(evaluations, claims=claims)
    return pd.concat([figures.assign(run=f"{i}") for i in range(seeds)], ignore_index=True)


def verdict_of(number, evaluations, seeds=10):
    board = decide_claims(repeated(evaluations, seeds, [number]))
    assert board["claim"].tolist() == [number]
    return board.iloc[0]


SWAPPED = {"s2s": 0.15, "m2m": 0.10}

FLAT_S2S = {name: 1.0 + 0.001 * i for i, name in enumerate(METRICS)}

# For each claim a study in which it fails, and what the reason must name.
FAILING = {
    1: ({"signal_error": 0.2}, ["mean abs(E)", "0.207 against 0.120", "margin ±0.005"]),
    2: ({"signal_r": 0.7}, ["r of signals (mean image) 0.700 against 0.800", "margin ±0.02"]),
    3: ({"level": SWAPPED}, ["DI of s2s", "(m2m)", "margin ±5 %"]),
    4: ({"metric": {"s2s": FLAT_S2S, "m2m": FLAT_S2S}, "difference": {"s2s": 0.3, "m2m": 0.3}}, ["over algorithms"]),
    5: ({"cohort": {"c1": 1.1, "c2": 1.0}}, ["DI of c1", "(c2)"]),
    6: ({"difference": {"s2s": 0.2, "m2m": 0.2}}, ["DI of GBR and LR", "margin ±5 %"]),
    7: ({"curve": {1: 1.4, 2: 1.2, 5: 1.3, 8: 1.2, 12: 1.0}}, ["DI of N = 5", "(N = 12)", "margin ±10 %"]),
    8: ({"mlnn_at_two": 1.5}, ["mlNN at N = 2", "(median of the other algorithms)"]),
    9: ({"fluctuation": {"K": {5: 0.06, 8: -0.05, 12: 0.0}}}, ["share of Dv", "against 0.500"]),
    10: ({"level": SWAPPED}, ["K median abs(E) of s2s", "T2t"]),
    11: ({"disagreement": {"s2s": 0.02, "m2m": 0.003}}, ["over algorithms, s2s"]),
}

# For each claim an ingredient that is missing, and its name.
MISSING = {
    1: ({"signals": False}, "signals predicted by s2s"),
    2: ({"cohorts": ("c1",)}, "two cohorts (there is one)"),
    3: ({"strategies": ("s2s",)}, "scores of m2m"),
    4: ({"algorithms": ("LR", "GBR")}, "three algorithms (there are 2)"),
    5: ({"cohorts": ("c2",)}, "two cohorts (there is one)"),
    6: ({"algorithms": ("LR",)}, "three algorithms (there is one)"),
    7: ({"sizes": (12,)}, "a learning curve with 1, 5 training patients"),
    8: ({"algorithms": ("LR", "GBR")}, "mlNN in s2s"),
    9: ({"sizes": (1, 2, 5, 8)}, "a learning curve with 10 or more training patients"),
    10: ({"metrics": ("f", "Dv", "T2t")}, "metric K"),
    11: ({"strategies": ("m2m",)}, "scores of s2s"),
}


def without(evaluations, *, signals=True, **kept):
    """Leave rows of a study out."""
    names = {"cohorts": "cohort", "strategies": "strategy", "algorithms": "algorithm", "sizes": "n_train"}
    names["metrics"] = "metric"
    changed = []
    for one in evaluations:
        tables = {}
        for table in ("scores", "signals"):
            rows = getattr(one, table)
            for key, values in kept.items():
                if names[key] in rows:
                    rows = rows[rows[names[key]].isin(values)]
            tables[table] = rows
        if not signals:
            tables["signals"] = pd.DataFrame()
        changed.append(SimpleNamespace(**tables, study=one.study))
    return changed


@pytest.fixture(scope="module")
def holding():
    return studies()


def test_in_a_study_made_for_it_all_eleven_claims_hold(holding):
    holding_board = decide_claims(repeated(holding))
    assert tuple(holding_board.columns) == BOARD_COLUMNS
    found = holding_board.set_index("claim")["verdict"].to_dict()
    assert found == dict.fromkeys(range(1, 12), HOLDS) | {5: NOT_SIMULATED}
    assert (holding_board["n_runs"] == 10).all()
    decided = holding_board[holding_board["claim"] != 5]
    assert (decided["reason"].str.count("trained on (?:body|lesion): holds in") == 4).all()
    assert holding_board["readings"].str.startswith(("DI: holds", "lesion: holds", "signals", "median abs")).all()


@pytest.mark.parametrize("number", FAILING)
def test_a_claim_fails_in_a_study_made_for_it(number):
    changes, words = FAILING[number]
    row = verdict_of(number, measured(**changes))
    assert row["verdict"] == FAILS
    for word in words:
        assert word in row["reason"], row["reason"]


@pytest.mark.parametrize("number", MISSING)
def test_a_claim_without_what_it_needs_cannot_be_told_and_says_what(number):
    kept, word = MISSING[number]
    row = verdict_of(number, without(measured(), **kept))
    assert row["verdict"] == OPEN
    assert f"missing: {word}" in row["reason"], row["reason"]


def test_the_file_of_margins_names_the_reading_that_decides():
    margins, claims = read_margins(MARGINS_FILE)
    assert {number: fields["primary"] for number, fields in claims.items()} == {
        claim.number: claim.readings[0].name for claim in CLAIMS
    }
    assert all(fields["sentence"] for fields in claims.values())
    named = set(claim_figures(study())["margin"]) - {""}
    assert named == set(margins)


@pytest.mark.parametrize("number", [3, 4, 10, 11])
def test_claims_about_strategies_that_depend_on_the_training_region_say_so(number):
    changes, _ = FAILING[number]
    row = verdict_of(number, studies(changed=lambda region, difficulty: region == "lesion", **changes))
    assert row["verdict"] == SILENT
    first = row["reason"].split("\n")[0]
    places = {region: f"synthetic easy, trained on {region}, synthetic mixed, trained on {region}" for region in ("body", "lesion")}
    assert first == f"holds: {places['body']}; does not hold: {places['lesion']}"
    row = verdict_of(number, studies(regions=("body",)))
    assert row["verdict"] == OPEN
    assert row["reason"].startswith("missing: synthetic easy, trained on lesion; synthetic mixed, trained on lesion")


def test_maps_against_the_truth_are_another_reading():
    evaluations = measured()
    for evaluation in evaluations:
        swapped = evaluation.scores["strategy"].map({"s2s": 0.6, "m2m": 0.3})
        evaluation.scores["median_abs_error_truth"] = swapped
        evaluation.scores["pearson"] = 0.5
    readings = dict(line.split(": ", 1) for line in verdict_of(10, evaluations)["readings"].split("\n"))
    assert readings == {"median abs(E)": HOLDS, "r": EQUAL, "median abs(E) against the truth": FAILS}


@pytest.mark.parametrize(("left_out", "value"), [("S0", 1e6), ("T2v", 9.0)])
def test_s0_is_no_property_of_the_tissue_t2v_sits_at_a_bound_and_both_are_left_out(left_out, value):
    metric = {name: {**values, left_out: value} for name, values in HOLDING["metric"].items()}
    pd.testing.assert_frame_equal(claim_figures(study(metric=metric)), claim_figures(study()))


def test_the_controls_and_other_ways_of_training_change_nothing(holding):
    plain = []
    for one in holding[:1]:
        other = one.scores.assign(train_on="other", bias=50.0, dispersion=50.0)
        scores = pd.concat([one.scores[one.scores["algorithm"] != "constant"], other])
        signals = one.signals[one.signals["algorithm"] != "constant"]
        plain.append(SimpleNamespace(scores=scores, signals=signals, study=one.study))
    pd.testing.assert_frame_equal(claim_figures(plain), claim_figures(holding[:1]))


def test_a_board_and_a_learning_curve_of_one_seed_are_put_together(holding):
    board = without(holding[::4], sizes=(12,))
    curve = without(holding[::4], sizes=SIZES[:-1])
    parts = claims_board([*board, *curve], claims=[3, 7])
    whole = claims_board(holding[::4], claims=[3, 7])
    pd.testing.assert_frame_equal(parts, whole)


def test_a_failed_prediction_counts_for_none():
    evaluations = measured()
    for one in evaluations:
        failed = (one.scores["patient"] == "c1p0") & (one.scores["metric"] == "K")
        one.scores.loc[failed, ["bias", "dispersion", "median_abs_error"]] = np.nan
    board = decide_claims(repeated(evaluations, claims=[3, 10]))
    assert board["verdict"].tolist() == [HOLDS] * 2


def test_figures_can_be_computed_again_in_a_line():
    evaluation = study(1)
    figures = claim_figures(evaluation)
    rows = evaluation.scores.query("algorithm != 'constant' and metric not in ('S0', 'T2v')")
    last = rows.query("n_train == 12")
    s2s = last.query("cohort == 'c1' and strategy == 's2s'")
    m2m = last.query("cohort == 'c1' and strategy == 'm2m'")

    di, mean = s2s["dispersion"], "dispersion"
    over_metrics, over_algorithms = (di.groupby(s2s[by]).mean().std() for by in ("metric", "algorithm"))
    second = last.query("cohort == 'c2' and strategy == 's2s'")
    by_algorithm = second.groupby("algorithm")[mean].mean()
    signals = evaluation.signals.query(
        "algorithm != 'constant' and strategy == 's2s' and n_train == 12 and cohort == 'c2' and contrast != 'all unseen'"
    )
    curve = rows.query("strategy == 's2s'")
    by_size = curve.groupby("n_train")[mean].mean()
    mlnn = curve.query("algorithm == 'mlNN'").groupby("n_train")[mean].mean()
    late = curve.query("n_train >= 5").groupby(["metric", "n_train"])[mean].mean()
    variance = late.groupby("metric").var()
    ratio = over_metrics / over_algorithms
    expected = [
        (3, "DI", "c1", "DI of s2s", di.mean(), m2m[mean].mean()),
        (3, "|BI|", "c1", "|BI| of s2s", s2s["bias"].abs().mean(), None),
        (4, "DI", "c1 s2s", "sd of DI over metrics", over_metrics, over_algorithms),
        (4, "DI", "c1", "sd over metrics / over algorithms of DI, m2m", None, ratio),
        (5, "DI", "s2s", "DI of c1", None, second[mean].mean()),
        (6, "DI", "c2 s2s", "DI of GBR and mlNN", by_algorithm["GBR"], by_algorithm["mlNN"]),
        (1, "lesion", "c2", "mean abs(E)", signals["relative_error"].mean(), None),
        (7, "DI", "s2s", "DI at N = 5", by_size[5], None),
        (7, "DI", "s2s", "DI of N = 8", by_size[8], by_size[12]),
        (8, "DI", "s2s", "DI of mlNN at N = 2, its own", mlnn[2], mlnn[12]),
        (9, "DI", "s2s", "share of Dv in the variance of DI", variance["Dv"] / variance.sum(), None),
        (11, "BI (signed)", "c1", "sd of BI (signed) over algorithms, s2s", s2s.groupby(["patient", "metric"])["bias"].std().mean(), None),
        (10, "median abs(E)", "c1", "K median abs(E) of s2s", s2s.query("metric == 'K'")["median_abs_error"].mean(), None),
    ]
    found = figures.set_index(["claim", "reading", "where", "quantity"])
    for *key, value, limit in expected:
        (row,) = found.loc[[tuple(key)]].itertuples()
        assert value is None or row.value == pytest.approx(value), key
        assert limit is None or row.limit == pytest.approx(limit), key


SCORES = pd.DataFrame(
    [
        {"n_train": n, "cohort": "A", "strategy": "s2s", "algorithm": name, "metric": metric, "bias": bias}
        for n, metric in ((2, "K"), (5, "K"), (5, "f"), (5, "S0"))
        for name, bias in zip(("LR", "RFR", "ETR", "constant"), (0.1, -0.2, 0.3, 9), strict=True)
    ]
).assign(dispersion=lambda table: table["n_train"], pearson=0.5, pearson_truth=0.4)


def figures_of(board):
    """Make up the figures of claim 1: the error of signals, and no scores of the body."""
    place = f"synthetic {board.preset}, trained on {board.region}"
    error = 0.08 + 1e-3 * board.seed
    rows = [
        (1, "lesion", place, str(board.seed), "c1", "mean abs(E)", error, "<", 0.12, "", "signal_error"),
        (1, "body", place, str(board.seed), "", "scores", math.nan, "", math.nan, "", ""),
    ]
    return pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))


def test_figures_read_from_files_are_those_of_the_boards(monkeypatch, tmp_path):
    def made_up(preset, region, seed, *_, **__):
        study = {"versions": {}, "seconds": 1.0}
        return SimpleNamespace(study=study, scores=SCORES, preset=preset, region=region, seed=seed)

    monkeypatch.setattr(bench_claims, "run_board", made_up)
    monkeypatch.setattr(bench_claims, "claim_figures", figures_of)
    paths = bench_claims.finished(range(10), tmp_path, tmp_path, {})
    figures = claim_boards.read_tables(paths, "figures")
    places = [(preset, region, seed) for seed in range(10) for preset, region in bench_claims.CONDITIONS]
    direct = [figures_of(made_up(*place)) for place in places]
    expected = pd.concat(direct, ignore_index=True)
    pd.testing.assert_frame_equal(figures[list(expected)], expected, check_dtype=False)
    row = decide_claims(figures).iloc[0]
    assert (row["verdict"], row["n_runs"]) == (HOLDS, 10)
    assert row["readings"] == "lesion: holds\nbody: cannot be told"


def test_algorithms_are_ranked_without_controls_by_what_most_patients_gave():
    ranks = bench_claims.ranked_scores(SimpleNamespace(scores=SCORES)).set_index("algorithm")
    assert ranks["abs_bias"].to_dict() == pytest.approx({"LR": 0.1, "RFR": 0.2, "ETR": 0.3})
    assert set(ranks["dispersion"]) == {5}
