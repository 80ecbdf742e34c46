"""Methods of a report: question, data, skill, other comparisons and cohorts."""

from dmrifit.report.page import render
from dmrifit.study.report.sections.overview import cohort_tables, origin, repeated_summary, times
from dmrifit.study.summaries import Board


def test_several_comparisons_are_laid_beside_each_other(make_evaluation, html_tables):
    values = {"LR": 0.2, "RFR": 0.4, "constant": 0.9}
    scores = [{"algorithm": name, "dispersion": value, "skill": value} for name, value in values.items()]
    study = {"cohorts": {"A": {"simulation": {"difficulty": "easy"}}}}
    first = make_evaluation([*scores, {"train_on": "other", "dispersion": 0.9}], study=study)
    study = {"settings": {"train_mask": "lesion", "seed": 7}, "constant": "all other patients"}
    second = make_evaluation([{"n_train": 1}], study=study | {"model": {"LR s2s": "ivim", "LR m2m": "adc"}})
    page = render(*repeated_summary([first, second]))
    assert "Skills of these comparisons cannot be compared" in page
    _, *rows = html_tables(page).tables[0][1]
    # Between two algorithms of 0.2 and 0.4 the standard deviation is 0.14.
    assert rows == [
        ["1", "body → lesion, N = 3", "the same cohort", "A", "easy", "s2s", "RFR 0.40", "10 ± 0.0", "30 ± 14", "0.50"],
        ["1", "body → lesion, N = 3", "other cohorts", "A", "easy", "s2s", "LR –", "10 ± –", "90 ± –", "0.50"],
        ["2", "lesion → lesion, N = 1, seed 7", "the same cohort", "A", "–", "s2s, ivim", "LR –", "10 ± –", "20 ± –", "0.50"],
    ]


def described(**changes):
    """Describe a cohort as a comparison does."""
    counts = (5, 50), (20, 100), (9, 70)
    patients = {f"p{i}": {"lesion": lesion, "body": body} for i, (lesion, body) in enumerate(counts)}
    protocol = {"b": [0.0, 500.0, 0.0, 500.0], "te": [70.0, 70.0, 90.0, 90.0]}
    return {"protocol": protocol, "patients": patients} | changes


def test_cohorts_are_tabulated_with_their_counts_and_protocols(make_evaluation, html_tables):
    inputs = {"b": [0.0, 500.0], "te": [70.0, 70.0]}
    study = {"cohorts": {"A": described(synthetic=True, inputs=inputs)}}
    board = Board(make_evaluation([{}], study=study))
    header, row = html_tables(cohort_tables(board)).tables[0][1]
    assert header[3:5] == ["lesion voxels, median (range)", "body voxels, median (range)"]
    cells = ["A", "synthetic", "3", "9 (5–20)", "70 (50–100)", "0, 500", "70, 90", "4"]
    assert row == [*cells, "b 0, 500 at TE 70"]
    protocols = {"protocol": {"b": [0.0, 500.0, 900.0], "te": None}, "inputs": {"b": [0.0, 500.0], "te": None}}
    study = {"cohorts": {"A": described(**protocols), "B": described()}}
    _, first, second = html_tables(cohort_tables(Board(make_evaluation([{}], study=study)))).tables[0][1]
    assert first[5:] == ["0, 500, 900", "–", "3", "b 0, 500"]
    assert (second[1], second[8]) == ("measured", "–")


def test_simulations_are_laid_beside_each_other(make_evaluation, html_tables):
    second = {"snr": 30.0, "shape": [48, 48, 8], "artifacts": None, "own_word": True}
    first = second | {"snr": 40.0, "patients": {"p0": {"tumor_site": "liver", "gain": 1.25}}}
    cohorts = {"A": described(simulation=first), "B": described(simulation=second)}
    html = html_tables(cohort_tables(Board(make_evaluation([{}], study={"cohorts": cohorts}))))
    _, rows = html.table("How the synthetic patients were made")
    assert rows == [
        ["signal-to-noise ratio in the liver, lowest b, shortest TE", "40", "30"],
        ["voxels of the image", "48, 48, 8", "48, 48, 8"],
        ["own word", "yes", "yes"],
    ]
    header, rows = html.table("Each patient")
    assert header == ["cohort", "patient", "tumor site", "gain"]
    assert rows == [["A", "p0", "liver", "1.25"]]


def test_seconds_are_means_at_the_largest_training_and_totals_over_all(make_evaluation, html_tables):
    trainings = [("p1", 1, 1.0), ("p1", 3, 4.0), ("p2", 1, 2.0), ("p2", 3, 8.0)]
    rows = [{"patient": patient, "n_train": n, "seconds": seconds} for patient, n, seconds in trainings]
    # A training has a row for each parameter, but took its time once.
    rows += [row | {"metric": "K"} for row in rows]
    study = {"seconds": 12.3, "models": {"trained": 1, "reused": 5}}
    *_, last_run = content = list(times(Board(make_evaluation(rows, study=study))))
    assert last_run.endswith("run took 12 s: 1 model trained, 5 models taken over from earlier runs.")
    header, *table = html_tables(content).tables[0][1]
    assert header[2:] == ["seconds per patient, N = 3", "seconds in all"]
    assert table == [["s2s", "LR", "6.000", "15.0"]]


def test_settings_are_written_in_words_and_estimators_like_calls(make_evaluation, html_tables):
    settings = {"train_on": ["same", "other"], "n_train": None, "other_setting": None, "resynthesize": False, "seed": 7}
    inner = {"class": "sklearn.linear_model.Ridge", "parameters": {"alpha": 1.0, "solver": None}}
    source = {"protocol": {"b": [0, 1, 2], "te": None}}
    parameters = {"regressor": inner, "source": source, "patch_shape": None}
    description = {"class": "dmrifit.predict.strategies.SignalToSignal", "parameters": parameters}
    study = {"settings": settings, "estimators": {"ridge s2s": description, "perfect s2s": ["perfect", description]}}
    evaluation = make_evaluation([{}], study=study)
    html = html_tables(render(*origin(Board(evaluation), [evaluation])))
    words = {"train on": "same, other", "n train": "all", "other setting": "none", "resynthesize": "no", "seed": "7"}
    assert words.items() <= dict(html.tables[0][1]).items()
    _, rows = html.table("Estimators")
    assert rows[0] == ["ridge s2s", "SignalToSignal(regressor=Ridge(alpha=1.0), source=<3 contrasts>)"]
    assert rows[1][0] == "perfect s2s"
