"""The page on which experts place boxes: mouse, keyboard, and the table that evaluate reads."""

import json

import numpy as np
import pytest

from placement import Voxel, simulate_gliomas
from placement.exchange.tables import read_experts
from placement.study.plotting import reader_page

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
