"""The page of a prediction: maps, widths of intervals, voxels to distrust."""

import ast
import copy
import re
from pathlib import Path

import browser
import numpy as np
import pytest
import typer

import dmrifit.study.report
from dmrifit.cli import program
from dmrifit.report.quicklook import ShownMaps, interval_advice, write_prediction_page

GRID = (6, 5, 3)
SIDECAR = {
    "Versions": {"dmrifit": "0"},
    "Model": {"Name": "adc", "Expression": "S0*exp(-b*ADC)"},
    "Parameters": {"S0": {"Units": "a.u."}, "ADC": {"Units": "µm²/ms"}},
    "Estimator": {"Class": "SignalToSignal", "Regressor": "LR"},
    "Scale": 1.0,
    "Settings": {},
    "Sources": {},
    "Voxels": {"InMask": 90, "WithSignal": 88, "NegativeSignal": 0},
}
ENTRY = {"TrainingCoverage": 0.91, "WorstTrainingPatient": 0.7, "MedianShareOfBounds": 0.4, "Determined": True}
INTERVALS = {
    "Coverage": 0.9,
    "Guarantee": "90 % cannot be promised with 6 patients (9 are needed)",
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
    write_prediction_page(ShownMaps(maps, np.eye(4), sidecar), title="sub-01", html=path, **options)
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
    assert "interval: median width" not in text
    assert "width of the" not in text


def test_the_answer_and_a_light_for_each_parameter_come_first(maps, tmp_path):
    text = page(maps, SIDECAR | {"Intervals": INTERVALS}, tmp_path, background=np.ones(GRID))
    assert "Intervals beside the maps: 90 % cannot be promised with 6 patients (9 are needed); not determined: ADC." in text
    assert re.findall(r'<tr class="(\w*)"><td><button type="button" data-show="([^"]*)">', text) == [
        ("", "S0"),
        ("undetermined", "ADC (not determined)"),
    ]
    assert float(re.search(r"1\.50 µm²/ms \((\S+)×\)", text)[1]) == pytest.approx(1, abs=0.1)
    assert text.index('class="verdict"') < text.index('class="viewer"') < text.index("<h2>Maps")
    without = page({name: maps[name] for name in ("S0", "ADC")}, SIDECAR, tmp_path)
    assert "predicted values is not known. Intervals need images and a model trained on five patients" in without
    assert without.count("no interval") == 2
    assert "■" not in without


def test_every_option_that_a_page_names_exists():
    known = typer.main.get_command(program.app).commands
    options = {name: {one for parameter in command.params for one in parameter.opts} for name, command in known.items()}
    named = []
    for room in (dmrifit.report, dmrifit.study.report, dmrifit.io):
        folder = Path(room.__file__).parent
        for path in (*folder.rglob("*.py"), *folder.rglob("*.toml")):
            texts = [path.read_text(encoding="utf-8")]
            if path.suffix == ".py":
                nodes = ast.walk(ast.parse(texts[0]))
                texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            for text in texts:
                # Not the variables of a style sheet.
                for found in re.finditer(r"(?:dmrifit ([a-z-]+) )?(?<![\w(-])(--[a-z][\w-]*)(?![\w:-])", text):
                    named.append(found[2])
                    commands = [found[1]] if found[1] else list(options)
                    assert any(found[2] in options[name] for name in commands), (path.name, found[0])
    assert "--coverage" in named
    assert len(named) >= 4


def test_values_are_those_of_the_mask_though_typicality_is_not_known_outside(maps, tmp_path):
    mask = np.zeros(GRID, bool)
    mask[2:4, 2:4, 1] = True
    cut = {name: np.where(mask, values, 0.0) for name, values in maps.items()}
    cut["typicality"] = np.where(mask, maps["typicality"], np.nan)
    text = page(cut, SIDECAR | {"Intervals": INTERVALS}, tmp_path)
    assert f'<td class="number">{np.median(maps["S0"][mask]):.3g} a.u.</td>' in text


def test_colors_are_those_of_a_fit_where_there_is_one(maps, tmp_path):
    values = {name: maps[name] for name in ("S0", "ADC")}
    text = page(values, SIDECAR, tmp_path, windows={"ADC": (0.25, 2.75)})
    assert "Maps have the colors of the fit in the same folder." in text
    assert dict(re.findall(r'"name":"([^"]*)".*?"window":\[([^]]*)\]', text))["ADC"] == "0.25,2.75"
    assert "colors of the fit" not in page(values, SIDECAR, tmp_path)


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_the_first_screen_shows_answer_lights_and_planes(maps, tmp_path, tab, width):
    page(maps, SIDECAR | {"Intervals": INTERVALS}, tmp_path, background=np.ones(GRID))
    opened = tab.open(tmp_path / "page.html", width)
    assert tab.size()[0] <= width
    assert tab.is_on_first_screen(opened.locator(".verdict"))
    assert tab.is_on_first_screen(opened.locator(".lights"))
    if width > 1000:
        assert tab.is_on_first_screen(opened.locator(".planes"))
    opened.locator(".lights button").nth(1).click()
    overlay = opened.locator("[data-role=overlay]")
    assert overlay.evaluate("(list) => list.selectedOptions[0].text") == "ADC (not determined)"


def test_sentences_name_only_what_is_there():
    section = copy.deepcopy(INTERVALS)
    assert interval_advice(section) == [
        "Intervals: 90 % cannot be promised with 6 patients (9 are needed). In the worst training patient they "
        "hold 70 % of the values of S0.",
        "Not determined, because the interval spans most of the range that is searched: ADC (83 %).",
        "7 % of the voxels are unlike.",
    ]
    section["Parameters"]["ADC"]["Determined"] = True
    del section["Typicality"]["Verdict"]
    assert len(interval_advice(section)) == 1
