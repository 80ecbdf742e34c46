"""The page of a prediction: maps, widths of intervals, voxels to distrust."""

import copy
import re

import numpy as np
import pytest

from dmrifit.report.prediction_page import interval_advice, write_prediction_page

GRID = (6, 5, 3)
SIDECAR = {
    "Versions": {"dmrifit": "0"},
    "Model": {"Name": "adc", "Expression": "S0*exp(-b*ADC)"},
    "Parameters": {"S0": {"Units": "arbitrary, as the image"}, "ADC": {"Units": "µm²/ms"}},
    "Estimator": {"Class": "SignalToSignal"},
    "Scale": 1.0,
    "Settings": {},
    "Sources": {},
    "Voxels": {"InMask": 90, "WithSignal": 88, "NegativeSignal": 0},
}
ENTRY = {
    "TrainingCoverage": 0.91,
    "WorstTrainingPatient": 0.7,
    "MedianShareOfBounds": 0.4,
    "Determined": True,
}
INTERVALS = {
    "Coverage": 0.9,
    "Guarantee": "no guarantee at this level with 6 patients: 90 % needs at least 9",
    "Parameters": {"S0": ENTRY, "ADC": ENTRY | {"Determined": False, "MedianShareOfBounds": 0.83}},
    "Typicality": {"UnlikeBelow": 0.05, "Verdict": "7 % of the voxels are unlike"},
}


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(1, 2, GRID) for name in ("S0", "ADC")}
    ends = {f"{name}_low": values[name] - 0.5 for name in values}
    ends |= {f"{name}_high": values[name] + 1 for name in values}
    return values | ends | {"typicality": rng.uniform(0, 1, GRID)}


def page(maps, sidecar, tmp_path, **options):
    path = tmp_path / "page.html"
    write_prediction_page(maps, np.eye(4), sidecar, title="sub-01", html=path, **options)
    return path.read_text(encoding="utf-8")


def test_a_map_stands_beside_its_width_above_the_input(maps, tmp_path):
    text = page(maps, SIDECAR | {"Intervals": INTERVALS}, tmp_path, background=np.ones(GRID))
    assert text.count('alt="Slices of ') == 3
    layers = re.findall(r'"name":"([^"]*)","kind":"([^"]*)"', text)
    assert layers == [
        ("input", "image"),
        ("S0", "map"),
        ("S0, width of the 90 % interval", "map"),
        ("ADC (not determined)", "map"),
        ("ADC, width of the 90 % interval (not determined)", "map"),
        ("unlike the training voxels", "mask"),
    ]
    for sentence in interval_advice(INTERVALS):
        assert sentence in text
    assert "ADC is not determined: in the typical voxel the interval spans 83 %" in text
    assert "91 %" in text
    assert "70 %" in text


def test_a_prediction_without_intervals_shows_its_maps(maps, tmp_path):
    values = {name: maps[name] for name in ("S0", "ADC")}
    text = page(values, SIDECAR, tmp_path)
    assert text.count('alt="Slices and histogram of ') == 2
    assert "interval" not in text.split("<main")[-1].split("<script")[0]


def test_sentences_name_only_what_is_there():
    section = copy.deepcopy(INTERVALS)
    assert interval_advice(section) == [
        "Intervals: no guarantee at this level with 6 patients: 90 % needs at least 9.",
        "Not determined, because the interval spans most of the range that is searched: ADC (83 %).",
        "7 % of the voxels are unlike.",
    ]
    section["Parameters"]["ADC"]["Determined"] = True
    del section["Typicality"]["Verdict"]
    assert len(interval_advice(section)) == 1
