"""Runs over many cases write one table and one page of all voxels."""

import re
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from dmrifit._utils.text_files import read_sealed
from dmrifit.cli import case_runs
from placement.box.voxel import Voxel
from placement.cli.case_runs import RUN
from placement.exchange.prescription import write_prescription
from placement.exchange.tables import BOX, read_boxes
from placement.simulate.gliomas import simulate_gliomas

PNG = b"\x89PNG\r\n\x1a\n"


def content_of(center, size, angles, *, synthetic=False, flags=()):
    """Give of a voxel what its file holds for the table."""
    return {
        "ras": {"center_mm": list(center), "angles_deg": list(angles)},
        "size_mm": list(size),
        "volume_ml": size[0] * size[1] * size[2] / 1000,
        "scores": {"objective": -1.25, "tumor_fraction": 0.875, "tumor_volume_inside_ml": 41.5},
        "rotated_angles": sum(angle != 0 for angle in angles),
        "flags": list(flags),
        "advice": [f"{flag}: a remedy" for flag in flags],
        "targets": ["tumor"],
        "content": {"target": 0.875, "outside": 0.125, "outside_brain": None},
        "brain": None,
        "regions": {"ventricles": {"distance_mm": 4.25}},
        "lipid": "lipid displacement not checked",
        "notes": [],
        "shim": "Shim is not assessed",
        "console": {
            "withheld": "",
            "forced": "",
            "reason": "",
            "philips": "ap_size : 20",
            "angles": {"philips": sum(angle != 0 for angle in angles), "siemens": 3},
        },
        "valid": "valid only while the patient lies as in t1.nii.gz",
        "synthetic": synthetic,
    }


@pytest.fixture
def contents():
    flags = ("volume below min_volume", "too many rotations")
    return {
        "second": content_of((1.5, -2, 3), (10, 20, 30), (0, 0, 12.5), synthetic=True),
        "first": content_of((-4, 5, 1 / 3), (11, 12, 13), (1, 2, 3), flags=flags),
    }


def table_of_page(folder):
    page = (folder / "index.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return page, cells


def test_the_table_has_a_row_for_each_case_in_their_order(contents, tmp_path):
    RUN.write(tmp_path, contents, figure=False)
    table = pd.read_csv(tmp_path / "placements.tsv", sep="\t", keep_default_na=False)
    scores = ["volume_ml", "objective", "tumor_fraction", "tumor_volume_inside_ml"]
    shares = ["target", "outside", "outside_brain"]
    assert list(table) == ["name", *BOX, *scores, "rotated_angles", *shares, "flags"]
    assert table["target"].tolist() == [0.875, 0.875]
    assert table["outside_brain"].tolist() == ["n/a", "n/a"]
    assert table["name"].tolist() == ["second", "first"]
    assert table["volume_ml"].tolist() == [6, 1.716]
    assert table["objective"].tolist() == [-1.25, -1.25]
    assert table["tumor_fraction"].tolist() == [0.875, 0.875]
    assert table["tumor_volume_inside_ml"].tolist() == [41.5, 41.5]
    assert table["rotated_angles"].tolist() == [1, 3]
    assert table["flags"].tolist() == ["", "volume below min_volume; too many rotations"]
    # Twelve digits are more than any scanner takes.
    assert "0.333333333333\t" in (tmp_path / "placements.tsv").read_text()


def test_boxes_of_the_table_are_read_back_as_they_were(contents, tmp_path):
    RUN.write(tmp_path, contents, figure=False)
    boxes = read_boxes(tmp_path / "placements.tsv", ["first", "second"])
    assert boxes[0].tolist() == pytest.approx([-4, 5, 1 / 3, 11, 12, 13, 1, 2, 3])
    assert boxes[1].tolist() == [1.5, -2, 3, 10, 20, 30, 0, 0, 12.5]


def test_the_page_shows_numbers_pictures_and_views_that_are_there(contents, tmp_path):
    for name in contents:
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "voxel_overlay.png").write_bytes(PNG)
    (tmp_path / "first" / "voxel_view.html").write_text("a page")
    RUN.write(tmp_path, contents, figure=True)
    page, rows = table_of_page(tmp_path)
    header = ["case", "volume, mL", "part that is target", "objective", "angles to set", "flags"]
    assert rows[0] == header
    assert rows[1] == ["second", "6.000", "0.875", "−1.250", "1 angle (Philips) or 3 (Siemens)", "none"]
    flags = "volume below min_volume; too many rotations"
    assert rows[2] == ["first", "1.716", "0.875", "−1.250", "3 angles", flags]
    assert re.findall(r'href="([^"]*voxel_view.html)"', page) == ["./first/voxel_view.html"]
    assert "4.2 mm from ventricles" in page


def test_names_of_cases_are_text_on_the_page(contents, tmp_path):
    RUN.write(tmp_path, {"a<b>&c": contents["first"]}, figure=True)
    page, rows = table_of_page(tmp_path)
    assert rows[1][0] == "a&lt;b&gt;&amp;c"
    assert "a<b>" not in page


@pytest.mark.parametrize("absent", ["jinja2", "matplotlib"])
def test_without_the_libraries_of_pages_there_is_only_the_table(contents, tmp_path, monkeypatch, absent):
    monkeypatch.setattr(case_runs, "find_spec", lambda name: None if name == absent else find_spec(name))
    RUN.write(tmp_path, contents, figure=True)
    assert [path.name for path in tmp_path.iterdir()] == ["placements.tsv"]


def test_a_written_prescription_has_every_field_that_the_table_needs(tmp_path):
    (scene,), _ = simulate_gliomas(1, spacing=4, random_state=0)
    voxel = Voxel(scene.centroid, (20, 20, 20))
    content = write_prescription(voxel, scene, tmp_path / "one", figure=False)
    assert read_sealed(tmp_path / "one" / "voxel.json") == content
    RUN.write(tmp_path, {"one": content}, figure=False)
    table = pd.read_csv(tmp_path / "placements.tsv", sep="\t")
    assert table["volume_ml"].tolist() == [8]
    inside = table["tumor_fraction"] * table["volume_ml"]
    np.testing.assert_allclose(table["tumor_volume_inside_ml"], inside, rtol=1e-9)
    assert table[["x", "y", "z"]].to_numpy()[0] == pytest.approx(scene.centroid)
