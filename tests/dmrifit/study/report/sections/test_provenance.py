"""Where the numbers of a report come from: times, settings, versions, commands."""

from dmrifit.report.page import render
from dmrifit.study.report.sections.provenance import origin, times
from dmrifit.study.summaries import Board


def timed(patient, n_train, seconds, algorithm="LR", **changes):
    keys = {"patient": patient, "n_train": n_train, "algorithm": algorithm}
    return keys | {"seconds": seconds} | changes


def test_seconds_are_means_at_the_largest_training_and_totals_over_all(
    make_evaluation, html_tables
):
    rows = [timed("p1", 1, 1.0), timed("p1", 3, 4.0), timed("p2", 1, 2.0), timed("p2", 3, 8.0)]
    # A training has a row for each parameter, but took its time once.
    rows += [row | {"metric": "K"} for row in rows]
    header, *table = html_tables(times(Board.of(make_evaluation(rows)))).tables[0][1]
    assert header[2:] == ["seconds per patient, N = 3", "seconds in all"]
    assert table == [["s2s", "LR", "6.000", "15.0"]]


def test_controls_stand_below_the_algorithms_in_gray(make_evaluation, html_tables):
    rows = [timed("p1", 3, 1.0, "constant"), timed("p1", 3, 1.0, "LR"), timed("p1", 3, 1.0, "RFR")]
    html = html_tables(times(Board.of(make_evaluation(rows))))
    assert [row[1] for row in html.tables[0][1][1:]] == ["LR", "RFR", "constant"]
    assert html.faint == [("s2s", "constant")]


def test_the_whole_run_says_how_many_models_were_kept(make_evaluation):
    fresh = {"seconds": 61.7, "models": {"trained": 4, "reused": 0}}
    text = render(*times(Board.of(make_evaluation([{}], study=fresh))))
    assert "The last run took 62 s in all." in text
    resumed = {"seconds": 61.7, "models": {"trained": 1, "reused": 3}}
    text = render(*times(Board.of(make_evaluation([{}], study=resumed))))
    assert "62 s in all, without 3 models kept from earlier ones." in text
    assert "The last run" not in render(*times(Board.of(make_evaluation([{}]))))


def origin_of(make_evaluation, *studies):
    evaluations = [make_evaluation([{}], study=study) for study in studies]
    return render(*origin(Board.of(evaluations[0]), evaluations))


def test_settings_are_written_in_words(make_evaluation, html_tables):
    settings = {
        "cohorts": {"A": ["p1"]},
        "train_on": ["same", "other"],
        "n_train": None,
        "max_voxels": None,
        "other_setting": None,
        "resynthesize": False,
        "controls": True,
        "seed": 7,
    }
    study = {"date": "2026-01-02", "settings": settings, "versions": {"numpy": "2.0"}}
    html = html_tables(origin_of(make_evaluation, study))
    assert html.tables[0][1] == [
        ["date", "2026-01-02"],
        ["train on", "same, other"],
        ["n train", "all"],
        ["max voxels", "all"],
        ["other setting", "none"],
        ["resynthesize", "no"],
        ["controls", "yes"],
        ["seed", "7"],
        ["version of numpy", "2.0"],
    ]


def test_estimators_are_written_like_calls(make_evaluation, html_tables):
    protocol = {"protocol": {"b": [0, 1, 2], "te": None}}
    inner = {"class": "sklearn.linear_model.Ridge", "parameters": {"alpha": 1.0, "solver": None}}
    parameters = {"regressor": inner, "source": protocol, "patch_shape": None}
    description = {"class": "dmrifit.predict.strategies.SignalToSignal", "parameters": parameters}
    estimators = {"ridge s2s": description, "perfect s2s": ["perfect", description]}
    html = html_tables(origin_of(make_evaluation, {"estimators": estimators}))
    _, rows = html.table("Estimators")
    call = "SignalToSignal(regressor=Ridge(alpha=1.0), source=<3 contrasts>)"
    assert rows[0] == ["ridge s2s", call]
    assert rows[1][0] == "perfect s2s"


def test_commands_are_named_once_each(make_evaluation):
    first, second = {"command": "dmrifit benchmark a"}, {"command": "dmrifit benchmark b <c>"}
    alone = origin_of(make_evaluation, first)
    assert ">Command<" in alone
    assert "first of the comparisons" not in alone
    both = origin_of(make_evaluation, first, second, first)
    assert ">Commands<" in both
    assert both.count("dmrifit benchmark a") == 1
    assert "dmrifit benchmark b &lt;c&gt;" in both
    assert "first of the comparisons" in both
    assert "Command" not in origin_of(make_evaluation, {})
