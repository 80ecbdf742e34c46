"""Files of repeated boxes: what they say, and that nothing is prescribed where the match is bad."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from moved_heads import AFFINE, head_signals

from placement import Voxel, read_voxel
from placement.exchange.repeat_files import describe_repeat, summary_line, write_repeat
from placement.exchange.repeats import OTHER_HEAD, REPEATED, Repeat

BOX = Voxel((10, -15, 12), (20, 25, 22), (10, -15, 20))


@pytest.fixture
def repeat():
    return Repeat(BOX, np.eye(4), REPEATED, 0.97, 0.0, 1.0, 0.01, (), ("not compared",), True)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(head_signals(0), AFFINE), path)
    return path


def test_records_of_repeats_are_read_as_boxes(repeat, scan, tmp_path):
    record = describe_repeat(repeat, scan, scan, sources={})
    assert record["content"] == "content unknown: tumor may have grown, shrunk or been removed"
    line = summary_line("case", record)
    assert "0.0 mm apart; 20 × 25 × 22 mm (11.0 mL) at 10.0, -15.0, 12.0 mm RAS+; angles 10.0, " in line
    assert line.endswith("removed; not compared")
    write_repeat(repeat, scan, scan, tmp_path / "out", record, figure=False)
    assert read_voxel(tmp_path / "out" / "repeat.json") == BOX
    assert read_voxel(tmp_path / "out" / "voxel_philips.txt").dice(BOX) > 0.999


def test_bad_matches_leave_no_numbers_for_scanners(repeat, scan, tmp_path):
    other = replace(repeat, answer=OTHER_HEAD, reliable=False, changed_share=None, shown_share=None, flags=("check",))
    record = describe_repeat(other, scan, scan, sources={})
    said = {f"case: {OTHER_HEAD}", "agreement 0.97", f"no numbers for consoles: {OTHER_HEAD}, or its position is uncertain"}
    assert said < set(summary_line("case", record).split("; "))
    write_repeat(other, scan, scan, tmp_path / "out", record, figure=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["repeat.json"]
    with pytest.raises(ValueError, match=r"repeat.json: its box is not reliable \(not the same head\)"):
        read_voxel(tmp_path / "out" / "repeat.json")
