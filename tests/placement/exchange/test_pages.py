"""Pages say first what is wrong with a box, and what it holds."""

import re

import numpy as np
import pytest

from dmrifit.report.style import OUTLINES
from placement.box.voxel import Voxel
from placement.cli.placement_commands import case_line
from placement.exchange import pages
from placement.exchange.pages import case_summary, console_numbers, summary_line
from placement.exchange.prescription import describe_placement, write_prescription
from placement.search.optimizer import VoxelOptimizer, share_words
from placement.search.scene import Scene
from placement.search.tissue_labels import MERGED, OUTSIDE_BRAIN, color_numbers, named_labels

VOXEL = Voxel((22.5, 14.5, 14.5), (24, 16, 16))


@pytest.fixture(scope="module")
def scene():
    values = np.zeros((48, 30, 30), np.uint8)
    values[8:22, 4:26, 4:26] = 1
    values[22:44, 4:26, 4:26] = 4
    return Scene(values, np.eye(4), labels=named_labels("brats2013"), name="synthetic block")


def test_flags_stand_above_what_a_box_holds_and_the_bar_adds_up(scene):
    content = describe_placement(VOXEL, scene)
    assert content["flags"] == ["more than 10 % necrosis", "less than 75 % target"]
    summary = str(case_summary(content))
    assert summary.index("more than 10 % necrosis: ") < summary.index("<svg")
    assert bar_percent(summary) == pytest.approx(100, abs=0.05)
    words = ("enhancing 54 %", "make the box smaller", "not checked", "he brain is unknown", "shim not assessed")
    assert [text for text in words if text not in summary] == []
    for least, option in ((10, "min-volume"), (20, "sides")):
        advice = describe_placement(VOXEL, scene, optimizer=VoxelOptimizer(size_range=(least, 60)))["advice"]
        assert any(text.endswith(f"or allow a smaller box (--{option})") for text in advice)
    brain = Scene(np.pad(np.ones((90, 90, 90), np.uint8), 2), np.eye(4))
    told = describe_placement(Voxel((45, 45, 45), (24, 16, 16)), brain)["advice"]
    assert told == ["tumor above 500 mL: it may be the mask of the brain; look at the picture"]


def test_the_bar_has_the_colors_of_the_outlines_in_pictures(scene):
    assert [(name, color) for name, (color, _) in scene.outlined.items()] == [("necrosis", 2)]
    css, tissues = pages.box_assets()["style"], pages._TEXTS["bar"]
    regions = color_numbers([OUTSIDE_BRAIN, "necrosis", "resection cavity"])
    for name, color in ({"tumor": 0, "enhancing": 0, MERGED: 2} | regions).items():
        assert f"rect.t{tissues.index(name)} {{ fill: {OUTLINES[color]}; }}" in css
    # A region without a color of its own takes one that no other and no box has.
    assert list(color_numbers(["wall", OUTSIDE_BRAIN, "skull", "necrosis"]).values()) == [5, 1, 6, 2]


def bar_percent(summary):
    """Add up the shares of the bar of what a box holds."""
    return sum(float(width) for width in re.findall(r'width="([0-9.]+)"', summary))


@pytest.mark.parametrize(("labels", "noun"), [("brats2013", "what is labeled"), (None, "the tumor")])
def test_the_bar_adds_up_where_the_brain_leaves_out_labeled_tissue(labels, noun):
    values = np.zeros((48, 30, 30), np.uint8)
    values[12:44, 4:26, 4:26] = 4
    brain = np.ones(values.shape, bool)
    brain[30:] = False
    with pytest.warns(UserWarning, match="lies outside the mask of the brain"):
        block = Scene(values, np.eye(4), labels=labels, brain=brain, name="synthetic block")
    summary = str(case_summary(describe_placement(Voxel((22.5, 14.5, 14.5), (24, 16, 16)), block)))
    outer = case_line("block", describe_placement(Voxel((32.5, 14.5, 14.5), (22, 16, 16)), block), "")
    assert re.search("no numbers for consoles: 64 % of the box lies outs.*, outside the brain 64 % .of it ", outer)
    assert f"6.8 mL (44 %) of {noun} lies outside the mask of the brain: look at the mask, or give another one" in summary
    assert bar_percent(summary) == pytest.approx(100, abs=0.05)
    assert "outside the brain 21 % (of it 80 % labeled)" in summary
    shares = {"target": 0.9961, "outside": 0.0039, "outside_brain": 0.00049}
    assert pages.content_line(shares) == "tumor 99.6 %, outside the target 0.3 %"


@pytest.mark.parametrize(("n_planes", "words"), [(0, ""), (1, "0.12 mL (0.41 %) of the tumor lies outside")])
def test_little_that_a_brain_leaves_out_is_a_note_and_no_flag(n_planes, words):
    values = np.zeros((260, 20, 20), np.uint8)
    values[8:251, 4:15, 4:15] = 1
    brain = np.ones(values.shape, bool)
    brain[251 - n_planes :] = False
    content = describe_placement(Voxel((100, 9, 9), (20, 10, 10)), Scene(values, np.eye(4), brain=brain))
    assert not any("lies outside" in flag for flag in content["flags"])
    assert words in str(case_summary(content))
    assert len(content["notes"]) == bool(words)
    assert "; ;" not in case_line("block", content, "")
    content["ras"]["center_mm"][0] = -7.5  # a true minus on pages, a hyphen in a terminal, whose numbers go into commands
    assert "at −7.5, 9.0, 9.0 mm" in str(case_summary(content))
    assert "at -7.5, 9.0, 9.0 mm" in case_line("block", content, "")


def test_lines_say_size_place_and_content_and_what_the_check_of_lipid_lacks(scene):
    line = summary_line(describe_placement(VOXEL, scene))
    assert line == (
        "24 × 16 × 16 mm (6.1 mL) at 22.5, 14.5, 14.5 mm RAS+; 54 % of it is target (enhancing); "
        "not rotated; it lies 22.5 mm to the patient's right of the isocenter, x = 0; without a head in an image this "
        "does not tell the side of the head; enhancing 54 %, necrosis 46 %; the brain is unknown: skull and scalp not "
        "checked; lipid displacement not checked: no bandwidths of pulses and no mask of the brain; shim not assessed"
    )
    shift = {"ppm_range": (-1.0, 1.0), "percent_per_ppm": 3.0}
    line = case_line("block", describe_placement(VOXEL, scene, **shift), "")
    words = "no mask of the brain; the box at -1.0 ppm, 1.0 mm away, holds 51 % target"
    assert f"; lipid displacement not checked: {words}" in line
    shares = {0.7479: "74.8 %", 0.75: "75 %", 0.4999: "49.9 %", 0.333: "33 %", 0.9961: "99.6 %", 0.9999: "100 %"}
    assert [share_words(share) for share in shares] == list(shares.values())


def test_numbers_are_withheld_below_half_a_target_unless_forced(scene, tmp_path):
    poor = Voxel((18, 14.5, 14.5), (22, 18, 18))
    content = write_prescription(poor, scene, tmp_path / "withheld", figure=False)
    assert content["console"]["withheld"].startswith("34 % of the box is target")
    assert not list((tmp_path / "withheld").glob("*philips.txt"))
    assert re.search("No numbers for consoles.*--force REASON", str(console_numbers(content)), re.DOTALL)
    forced = write_prescription(poor, scene, tmp_path / "forced", force="<b>pilot scan", figure=False)
    assert (tmp_path / "forced" / "voxel_philips.txt").read_text().startswith("! forced: <b>pilot scan")
    assert "RAS+; numbers for consoles forced: <b>pilot scan; " in case_line("block", forced, "")
    assert forced["console"]["forced"] == "<b>pilot scan"
    page = str(console_numbers(forced))
    assert page.count("Copy</button>") == 2
    assert ("pilot scan" in page, "<b>pilot" in page) == (True, False)
