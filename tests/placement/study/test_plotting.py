"""Figures of a comparison draw the numbers of its tables; experts place boxes on a page by mouse and keyboard."""

import json

import numpy as np
import pandas as pd
import pytest

from placement import Voxel, simulate_gliomas
from placement.exchange.tables import read_experts
from placement.study.plotting import plot_evaluation, reader_page


@pytest.fixture
def small_tables():
    """Two cases of experts and one method, with numbers that are easily told apart."""
    cases = pd.DataFrame({
        "case": [0, 1, 0, 1], "method": ["experts", "experts", "network", "network"],
        "tumor_volume": [30.0, 50.0, 30.0, 50.0], "f_tumor": [0.9, 0.8, 0.7, np.nan],
        "dice_fair": [0.6, 0.4, 0.5, 0.3], "dice_mean": [0.61, 0.41, 0.51, 0.31],
        "volume": [8.0, 10.0, 9.0, 16.0], "difference": [1.0, -2.0, 1.0, 6.0],
    })  # fmt: skip
    limits = pd.DataFrame({
        "method": ["network", "network"], "against": ["expert 1", "mean of experts"],
        "bias": [99.0, 3.5], "lower": [98.0, -3.43], "upper": [100.0, 10.43],
    })  # fmt: skip
    return {"cases": cases, "bland_altman": limits}


def points(ax):
    """Coordinates of the groups of points, in the order in which they were drawn."""
    return [np.column_stack(line.get_data()) for line in ax.lines if line.get_marker() == "o"]


def bars(ax):
    return [line.get_ydata() for line in ax.lines if line.get_marker() != "o"]


def test_every_method_is_a_column_of_points_around_their_mean(small_tables):
    dice, share = plot_evaluation(small_tables).axes[:2]
    experts, network = points(dice)
    np.testing.assert_array_equal(experts[:, 1], [0.6, 0.4])
    np.testing.assert_array_equal(network[:, 1], [0.5, 0.3])
    for column, group in enumerate((experts, network)):
        assert (np.abs(group[:, 0] - column) <= 0.25).all()
        assert len(set(group[:, 0])) == 2
    np.testing.assert_allclose(bars(dice), [[0.5, 0.5], [0.4, 0.4]])
    # A case that the method did not place has no point, and counts for no mean.
    assert [len(group) for group in points(share)] == [2, 1]
    np.testing.assert_allclose(bars(share), [[0.85, 0.85], [0.7, 0.7]])
    for ax in (dice, share):
        assert [label.get_text() for label in ax.get_xticklabels()] == ["experts", "network"]


def test_dice_and_volume_are_drawn_over_the_volume_of_the_tumor_above_a_notice(small_tables):
    figure = plot_evaluation(small_tables)
    assert figure.get_supxlabel() == "Not for clinical use"
    assert "no person was scanned" in plot_evaluation(small_tables, synthetic=True).get_supxlabel()
    dice, volume = figure.axes[2:4]
    assert [ax.get_title("left") for ax in (dice, volume)] == ["mean Dice", "volume, mL"]
    assert [text.get_text() for text in volume.get_legend().get_texts()] == ["experts", "network"]
    np.testing.assert_array_equal(points(dice), [[[30, 0.61], [50, 0.41]], [[30, 0.51], [50, 0.31]]])
    np.testing.assert_array_equal(points(volume), [[[30, 8], [50, 10]], [[30, 9], [50, 16]]])


def test_differences_are_drawn_over_the_mean_of_method_and_experts(small_tables):
    agreement = plot_evaluation(small_tables).axes[4]
    # A box of 9 mL that is 1 mL larger than the experts' of 8 mL, and one of 16 and 10 mL.
    np.testing.assert_allclose(points(agreement), [[[8.5, 1], [13, 6]]])
    assert [height[0] for height in bars(agreement)] == [3.5, -3.43, 10.43]
    assert agreement.get_ylim()[1] > 10.43
    assert agreement.get_title("left") == "network: 3.5 mL (-3.4 … 10.4)"
    # Limits that are not known are not drawn, and a bias that rounds to zero has no sign.
    small_tables["bland_altman"].loc[1, ["bias", "lower", "upper"]] = [-0.04, np.nan, np.nan]
    agreement = plot_evaluation(small_tables).axes[4]
    assert [height[0] for height in bars(agreement)] == [-0.04]
    assert agreement.get_title("left").startswith("network: 0.0 mL")


N_CASES = 3


@pytest.fixture(scope="module")
def scenes():
    return simulate_gliomas(N_CASES, spacing=4.0, image=True, random_state=3)[0]


def drag(page, plane, start, end):
    """Drag from one point to another, given as shares of the plane's picture."""
    canvas = page.locator(f"[data-plane={plane}] canvas").bounding_box()
    (x0, y0), (x1, y1) = (
        (canvas["x"] + x * canvas["width"], canvas["y"] + y * canvas["height"]) for x, y in (start, end)
    )
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move((x0 + x1) / 2, (y0 + y1) / 2)
    page.mouse.move(x1, y1)
    page.mouse.up()


def place_of(page, plane, point):
    """Where a point in mm is in the picture of a plane, as shares."""
    return page.evaluate(
        "([plane, point]) => { const { reader } = document.querySelector('.reader');"
        " const size = sizeOf(reader.geometry, plane);"
        " return pixelOf(reader.geometry, plane, point).map((x, i) => (x + 0.5) / size[i]); }",
        [plane, point],
    )


def box_of(page):
    row = page.locator("[data-role=table]").input_value().splitlines()[1].split("\t")
    return Voxel.from_array([float(text) for text in row[2:]])


def opened(tab, scenes, path, **options):
    path.write_text(reader_page(scenes, **options), encoding="utf-8")
    page = tab.open(path, height=1100)
    page.wait_for_selector(".reader[data-state=ready]")
    return page


def test_page_of_readers_hides_names_and_holds_everything(scenes):
    page = reader_page(scenes)
    assert "http" not in page.partition("<script")[2].replace("http-equiv", "")
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert {case["name"] for case in data["cases"]} == {scene.name for scene in scenes}
    assert "synthetic-00" not in page.partition("<script")[0]
    orders = {tuple(case["name"] for case in json.loads(
        reader_page(scenes, random_state=seed).partition('type="application/json">')[2].partition("</script>")[0]
    )["cases"]) for seed in range(6)}  # fmt: skip
    assert len(orders) > 1
    with pytest.raises(ValueError, match="cases of different names"):
        reader_page([scenes[0], scenes[0]])


def test_boxes_are_placed_moved_stretched_and_turned_with_the_mouse(scenes, tab, tmp_path):
    page = opened(tab, scenes, tmp_path / "reader.html")
    page.locator("[data-role=expert]").fill("AB")
    page.mouse.move(5, 5)
    place = (0.45, 0.55)
    drag(page, "axial", place, place)
    first = box_of(page)
    np.testing.assert_allclose(first.size, 20, atol=1e-3)
    np.testing.assert_allclose(place_of(page, "axial", first.center.tolist()), place, atol=0.01)
    # The right of the patient is on the left.
    drag(page, "axial", place, (place[0] - 0.1, place[1]))
    moved = box_of(page)
    assert moved.center[0] > first.center[0] + 5
    np.testing.assert_allclose(moved.center[1:], first.center[1:], atol=0.6)
    # The face in front, by 6 mm.
    face = moved.center + np.array([0, 10, 0])
    drag(page, "axial", place_of(page, "axial", face.tolist()), place_of(page, "axial", (face + np.array([0, 6, 0])).tolist()))
    stretched = box_of(page)
    np.testing.assert_allclose(stretched.size, (20, 26, 20), atol=0.6)
    np.testing.assert_allclose(stretched.center - moved.center, (0, 3, 0), atol=0.4)
    handle = stretched.center + np.array([0, 13 + 12, 0])
    angle = np.radians(20)
    turned_handle = stretched.center + 25 * np.array([-np.sin(angle), np.cos(angle), 0])
    drag(page, "axial", place_of(page, "axial", handle.tolist()), place_of(page, "axial", turned_handle.tolist()))
    turned = box_of(page)
    np.testing.assert_allclose(turned.angles, (0, 0, 20), atol=1.5)
    np.testing.assert_allclose(turned.size, stretched.size, atol=1e-3)


def test_saved_table_is_one_that_evaluate_reads(scenes, tab, tmp_path):
    proposals = {scene.name: Voxel(scene.centroid, (22, 24.123456, 20), (5, -7, 12.34567)) for scene in scenes}
    page = opened(tab, scenes, tmp_path / "reader.html", proposals=proposals)
    page.locator("[data-role=expert]").fill("AB")
    assert page.locator("[data-role=export]").is_disabled()
    for case in range(N_CASES):
        shown = page.locator("[data-role=table]").input_value().splitlines()[1:]
        assert [row.split("\t")[0] for row in shown] == [f"case {i + 1}" for i in range(case)]
        page.locator("[data-role=accept]").click()
        if case + 1 < N_CASES:
            page.locator("[data-role=next]").click()
            tab.wait_until(f"document.querySelector('.reader').reader.index === {case + 1}")
            tab.wait_until("!document.querySelector('[data-role=accept]').disabled")
    with page.expect_download() as download:
        page.locator("[data-role=export]").click()
    table = tmp_path / "boxes.tsv"
    download.value.save_as(table)
    assert download.value.suggested_filename == "boxes_AB.tsv"
    boxes = read_experts(table, [scene.name for scene in scenes])
    assert boxes.shape == (N_CASES, 1, 9)
    for box, scene in zip(boxes[:, 0], scenes, strict=True):
        np.testing.assert_allclose(box, proposals[scene.name].as_array(), rtol=1e-11)
    assert page.locator("[data-role=table]").input_value() == table.read_text(encoding="utf-8")


def test_numbers_are_typed_and_boxes_removed(scenes, tab, tmp_path):
    page = opened(tab, scenes, tmp_path / "reader.html")
    drag(page, "coronal", (0.5, 0.5), (0.5, 0.5))
    fields = page.locator("[data-number]")
    for i, text in enumerate(("1", "2", "3", "30", "25", "15", "10", "20", "-30")):
        fields.nth(i).fill(text)
        fields.nth(i).press("Tab")
    assert box_of(page).dice(Voxel((1, 2, 3), (30, 25, 15), (10, 20, -30))) > 0.9999
    page.evaluate("() => document.querySelector('.reader').reader.box.center[1] = 2.345678")
    fields.nth(0).fill("1.5")
    fields.nth(0).press("Tab")
    np.testing.assert_allclose(box_of(page).center, (1.5, 2.345678, 3), atol=1e-9)
    page.locator("[data-role=remove]").click()
    assert len(page.locator("[data-role=table]").input_value().splitlines()) == 1
    assert page.locator("[data-role=volume]").inner_text() == "Click into a plane to place a box."
