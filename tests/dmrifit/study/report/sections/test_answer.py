"""The first screen: best predictor in words, bars, maps, other cohorts, patients needed."""

import itertools

import numpy as np
import pandas as pd
import pytest

from dmrifit.study.comparison import Evaluation
from dmrifit.study.predictions import PatientPredictions
from dmrifit.study.report.sections.answer import (
    _ends,
    answer,
    curves,
    enough_in_words,
    other_sites,
    sizes_of,
    skill_bars,
    verdict,
)
from dmrifit.study.summaries import Board, matching

TWO_DRAWS = {"settings": {"n_repeats": 2}}
SKILL = {"Dt": 0.6, "K": -0.4, "f": 0.0, "T2v": -0.1, "S0": 0.9}


def study_of(make_evaluation, *, n_patients=6, cohorts=("A",), independent=None, settings=TWO_DRAWS, signals=(),
             train_on=("same",), sizes=(3,), predictions=None, control=("constant", 0.0)):  # fmt: skip
    """Make a comparison of LR s2s, worse ETR m2m and a control; f and signals differ by patient."""
    rows, skills = [], []
    predictors = ("LR", "s2s", 0.0), ("ETR", "m2m", -0.5), (control[0], "s2s", None)
    levels = itertools.product(cohorts, train_on, sizes, range(n_patients), predictors, SKILL.items())
    for cohort, way, n_train, i, (algorithm, strategy, shift), (metric, skill) in levels:
        rows.append({"cohort": cohort, "patient": f"{cohort}{i}", "algorithm": algorithm, "strategy": strategy,
                     "metric": metric, "train_on": way, "n_train": n_train})  # fmt: skip
        spread = (0.5 - i / (n_patients - 1)) * (metric == "f") if n_patients > 1 else 0
        value = control[1] if shift is None else skill + shift + spread
        skills.append(value - 0.2 * (way == "other") - 0.1 * (max(sizes) - n_train))
    pooled = [row | {"contrast": "all unseen", "skill": value + int(row["patient"][1:]) / 100}
              for name, value in signals for row in rows if row["algorithm"] == name]  # fmt: skip
    evaluation = make_evaluation(rows, pooled, settings, predictions)
    scores = evaluation.scores.assign(skill=skills)
    if independent is not None:
        scores = scores.assign(skill_independent=scores["skill"] - independent)
    return Board(Evaluation(scores, evaluation.signals, evaluation.study, evaluation.predictions))


def test_the_best_predictor_is_named_with_skill_interval_and_parameters(make_evaluation):
    name, skill, parameters = verdict(study_of(make_evaluation))
    assert name == "Best predictor: LR, signals to signals."
    # The mean of Dt, K and f, without T2v or S0.
    assert "best constant, against the fit to all images, inputs included: 0.07 (" in skill
    assert parameters == (
        "Its skill was tested against that of every other predictor (signed-rank tests over 6 patients, Holm's "
        "correction; largest p, against ETR m2m: 0.031). Against the best constant, by the 95 % intervals (from five "
        "patients on) in A: LR, signals to signals, is better in Dt, S0; not shown to be better in f; worse in K, T2v. "
        "No mean includes T2v or S0.")
    # Noise of its own decides where it is known.
    _, skill, parameters = verdict(study_of(make_evaluation, independent=0.1))
    assert "against a reference with independent noise: −0.03 (" in skill
    assert "is better in Dt, S0; not shown to be better in f" in parameters
    # A control that is better is told first; a reference such as the truth is no predictor to beat.
    assert verdict(study_of(make_evaluation, control=("truth", 0.5)))[0] == name
    assert verdict(study_of(make_evaluation, control=("copy", 0.5)))[:2] == [
        "In map skill, no algorithm is on average better than the control copy, signals to signals: its mean is 0.50, "
        "that of the best algorithm 0.07.", "Of the algorithms, highest map skill: LR, signals to signals."]  # fmt: skip


@pytest.mark.parametrize("control", ["shuffled", "copy"])
@pytest.mark.parametrize(("skill", "floor"), [(0.5, 0.1), (-0.1, -0.2), (0.5, 0.6)])
def test_maps_are_credited_where_signals_are_predicted_better_than_by_controls(make_evaluation, skill, floor, control):
    signals, is_credited = [("LR", skill), (control, floor)], skill > max(floor, 0)
    lines = verdict(study_of(make_evaluation, control=(control, -0.9), signals=signals))
    assert ("Best predictor" in lines[0], "better in Dt, S0" in lines[-1]) == (is_credited, is_credited)
    words = f"the 0.62 of the control {control} s2s, so" if floor > 0 else "0, the skill of the best constant, so"
    assert is_credited or f"does not lie above {words}" in lines[0]


def test_a_predictor_is_the_best_where_signed_rank_tests_of_its_skill_say_so(make_evaluation):
    rows = [{"algorithm": name, "patient": f"p{i}"} for name in ("LR", "ETR", "RFR") for i in range(8)]
    evaluation = make_evaluation(rows, study=TWO_DRAWS)
    # Of 8 differences the second or third smallest is negative: p = 6/256 or 10/256, doubled by Holm's correction.
    for signs, name in (([1, -1, 1], "Best predictor: LR, signals to signals."),
                        ([1, 1, -1], "Highest map skill: LR, signals to signals; not told apart from ETR s2s, RFR s2s.")):
        differences = np.append(signs, np.ones(5)) * np.arange(1, 9) / 100
        skill = np.concatenate([np.full(8, 0.5), *[0.5 - differences] * 2])
        scores = evaluation.scores.assign(skill=skill)
        assert verdict(Board(Evaluation(scores, evaluation.signals, evaluation.study)))[0] == name


@pytest.mark.parametrize(("options", "reason"), [({"settings": {}}, "One random choice"), ({"n_patients": 3}, "3 patients")])
def test_one_seed_or_few_patients_have_skill_and_interval_and_no_verdict(make_evaluation, options, reason):
    name, skill, last = verdict(study_of(make_evaluation, **options))
    assert name == "Highest map skill: LR, signals to signals."
    assert "Of the algorithms, highest" in verdict(study_of(make_evaluation, control=("copy", 0.5), **options))[1]
    assert (" (" in skill) == ("settings" in options)
    assert last.startswith(reason)
    assert " cannot show whether algorithms differ." in last


def test_bars_are_signals_the_mean_and_parameters_best_first(make_evaluation):
    table = skill_bars(study_of(make_evaluation, independent=0.3))
    both = table.groupby("series")["row"].apply(list).to_dict()
    rows = ["mean of maps", "S0", "Dt", "f", "T2v", "K"]
    assert both == {"against a reference with independent noise": rows, "against the fit to the same images": rows}
    own = table[table["series"] == "against a reference with independent noise"].set_index("row")["skill"]
    np.testing.assert_allclose(own, [-0.7 / 3, 0.6, 0.3, -0.3, -0.4, -0.7], atol=1e-9)
    assert set(skill_bars(study_of(make_evaluation))["series"]) == {"against the fit to the same images"}


def lesion(patient):
    index = np.argwhere(np.ones((3, 3, 1), bool)) + np.array([2, 2, 0])
    reference = np.column_stack([np.linspace(1, 2, 9)] * 2)
    return PatientPredictions(
        cohort="A", patient=patient, index=index, shape=(8, 8, 2), affine=np.diag([2.0, 2, 5, 1]),
        names=("Dt", "K"), units=("µm²/ms", "1"), labels=("a",), b=np.zeros(1), te=np.full(1, np.nan),
        seen=np.ones(1, bool), reference=reference, truth=None, measured=reference[:, :1],
        maps={"LR s2s": 1.1 * reference}, signals={"LR s2s": reference[:, :1]},
        anatomy=np.full((8, 8, 2), 99, np.uint8),
    )  # fmt: skip


def test_the_first_screen_has_four_answers(make_evaluation, read):
    predictions = {("A", f"A{i}"): lesion(f"A{i}") for i in range(6)}
    ways = {"cohorts": ("A", "B"), "train_on": ("same", "other"), "sizes": (1, 2, 3)}
    board = study_of(make_evaluation, **ways, predictions=predictions)
    html = read(answer(board))
    assert list(read.figures) == ["answer_skill", "answer_maps", "answer_sites", "answer_sizes"]
    # Of even numbers the lower of the middle: patients are ordered by f alone.
    assert "Largest lesion of A3, in the middle of A by skill: Dt, on average predicted best, and K, worst." in html
    numbers = {text.get_text() for text in read.figures["answer_sites"].axes[0].texts}
    assert {"0.07", "−0.13"} <= numbers
    rising = "2 to 3 patients: 0.10 (0.10 to 0.10), still rising"
    assert f"in map skill (LR, signals to signals): A, {rising}; B, {rising}." in html


def test_what_was_not_compared_is_said_in_the_place_of_its_picture(make_evaluation, read):
    settings = {"command": "dmrifit benchmark 'my data/p.tsv' --sizes=3 --out 'old one' --seed 1"}
    html = read(answer(study_of(make_evaluation, settings=settings)))
    assert list(read.figures) == ["answer_skill"]
    assert "One cohort was compared" in html
    assert "No predictions of single voxels were kept" in html
    command = "dmrifit benchmark &#39;my data/p.tsv&#39; --seed 1 --sizes 1,2,3 --out study-sizes<"
    assert "was tried with one number of training patients (N = 3)." in html
    assert f"<p>To see more:</p><pre>{command}" in "".join(html.splitlines())
    # Cohorts and ways of training of different numbers of patients are no learning curve.
    pooled = study_of(make_evaluation, settings=settings, cohorts=("A", "B"), train_on=("same", "pooled"))
    scores = pooled.evaluation.scores
    sizes = 2 + (scores["cohort"] == "B") + 3 * (scores["train_on"] == "pooled")
    board = Board(Evaluation(scores.assign(n_train=sizes), pooled.evaluation.signals, pooled.study))
    assert " --sizes 1,2 --out study-sizes<" in read(answer(board))
    assert not list(curves(board))
    two = read(answer(study_of(make_evaluation, cohorts=("A", "B"), sizes=(1,))))
    call = "compare(…, train_on=[&#34;same&#34;, &#34;other&#34;], resynthesize=True, out=&#34;study-cohorts&#34;)"
    assert f"To try it:</p><pre>{call}" in "".join(two.splitlines())
    assert "To see more" not in two


@pytest.mark.parametrize(("gain", "words"), [
    (np.full(8, 0.01), "2 to 5 patients: 0.01 (0.01 to 0.01), less than 0.02"),
    (np.full(8, -0.1), "2 to 5 patients: −0.10 (−0.10 to −0.10), less than 0.02"),
    (np.full(8, 0.2), "2 to 5 patients: 0.20 (0.20 to 0.20), still rising"),
    (np.full(8, 0.004), "2 to 5 patients: 0.004 (0.004 to 0.004), less than 0.02"),
    (np.linspace(-0.09, 0.31, 8), "2 to 5 patients: 0.110 (−0.004 to 0.224), not shown to differ from 0"),
    (np.linspace(-0.5, 0.4, 8), ", not shown to differ from 0"),
])  # fmt: skip
def test_patients_are_enough_where_an_interval_of_paired_gains_says_so(gain, words):
    patients = [f"p{i}" for i in range(8)]
    gains = pd.DataFrame({"cohort": "A", "patient": patients, "n_train": 2, "most": 5, "gain": gain})
    assert enough_in_words(gains).endswith(words)


@pytest.fixture(scope="module")
def board(random_study):
    return Board(random_study.evaluation)


def test_sizes_are_means_over_patients_and_parameters(board, random_study):
    table = sizes_of(board)
    assert len(table) == 2 * 2 * 2 * 2
    scores = random_study.evaluation.scores
    scores = scores[(scores["train_on"] == "same") & ~scores["metric"].isin(["S0", "T2v"])]
    scores = scores.assign(bias=scores["bias"].abs())
    for row in table.to_dict("records"):
        means = matching(scores, **{key: row[key] for key in ("cohort", "strategy", "algorithm", "n_train")})
        means = means[["bias", "dispersion"]].mean()
        np.testing.assert_allclose([row["abs_bias"], row["dispersion"]], means)


def test_learning_curves_have_points_where_an_algorithm_was_trained(make_evaluation, read):
    rows = [("LR", 1, 0.5), ("LR", 2, 0.3), ("RFR", 2, 0.4)]
    read(curves(Board(make_evaluation([{"algorithm": name, "n_train": n, "dispersion": value} for name, n, value in rows]))))
    panel = next(axes for axes in read.figures["learning"].axes if axes.get_ylabel() == "DI (%)")
    lines = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in panel.lines]
    assert lines == [([1, 2], [50, 30]), ([2], [40])]


def test_ways_of_training_are_laid_beside_each_other_for_every_learner(board, random_study, read):
    read(other_sites(board))
    (figure,) = read.figures.values()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    panel = next(axes for axes in figure.axes if axes.get_xlabel() == "DI (%)")
    row = labels.index("B: RFR s2s")
    assert len(labels) == 2 * 4
    points = np.concatenate([dots.get_offsets() for dots in panel.collections])
    values = [x for x, y in points if round(y) == row]
    averaged = [name for name in random_study.tissue if name != "T2v"]
    scores = [random_study.rows(train_on, "B", "s2s", "RFR") for train_on in ("same", "other")]
    expected = [100 * random_study.means(one, averaged)[1] for one in scores]
    np.testing.assert_allclose(sorted(values), sorted(expected))


def test_an_axis_of_skill_shows_at_least_half_of_the_values():
    assert _ends(pd.Series([-2.0, -3.0, -4.0])) == (-3.05, 0.05)
    assert _ends(pd.Series([0.2, -3.0, 0.4])) == (-1.05, 0.45)
