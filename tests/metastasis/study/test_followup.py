"""Each lesion is listed where it is, with what has become of it since the prior scan."""

import numpy as np
import pandas as pd
import pytest

from dmrifit.io.components import label_components
from metastasis.scans.cases import Case
from metastasis.segmentation.ensemble import SensitivitySpecificityEnsemble
from metastasis.simulate.patients import simulate_metastases
from metastasis.study.followup import CHANGES, changes_in_words, follow_up, reader_table

SHAPE = (60, 50, 40)
AFFINE = np.array([[-1.0, 0, 0, 30], [0, 1, 0, -20], [0, 0, 1, 5], [0, 0, 0, 1]])


def ball(center, radius):
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) <= radius**2


@pytest.fixture(scope="module")
def scans():
    """Give labels of a scan and of its prior: one lesion for each change, moved by a voxel."""
    now, then = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for center, radius, before in (
        ((10, 10, 10), 3, 0),
        ((30, 10, 10), 5, 3),
        ((50, 10, 10), 4, 4),
        ((10, 35, 10), 3, 5),
        ((30, 35, 10), 0, 3),
    ):
        if radius:
            now[ball(center, radius)] = 2
        if before:
            then[ball(np.add(center, 1), before)] = 1
    now[ball((50, 35, 30), 2)] = 1
    return now, then


def test_the_table_is_the_same_in_any_stored_order_of_axes(scans):
    now = scans[0].copy()
    now[50, 45, 35], now[5, 45, 35], now[30, 2, 35] = 1, 1, 2  # of one size
    table = reader_table(now, AFFINE, prior=scans[1])
    assert table["number"].tolist() == [1, 2, 3, 4, 7, 5, 6, 8, 4]
    # Last axis first, the second one reversed.
    order = AFFINE @ np.array([[0, 0, 1, 0], [0, -1, 0, SHAPE[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    turned, turned_prior = (labels.transpose(2, 1, 0)[:, ::-1] for labels in (now, scans[1]))
    pd.testing.assert_frame_equal(reader_table(turned, order, prior=turned_prior), table)


def test_each_change_is_named_by_thresholds_as_stated(scans):
    table = reader_table(scans[0], AFFINE, prior=scans[1])
    assert list(table["finding"]) == ["marked by both"] * 4 + ["candidate", "prior only"]
    assert list(table["change"]) == ["grown", "stable", "new", "shrunk", "new", "vanished"]
    assert set(table["change"]) == set(CHANGES)
    assert list(table["n_now"]) == [1, 1, 1, 1, 1, 0]
    assert list(table["n_prior"]) == [1, 1, 0, 1, 0, 1]
    options = {"prior": scans[1], "affine": AFFINE}
    strict = reader_table(scans[0], **options, grown=1.0, shrunk=0.9)
    assert list(strict["change"][:4]) == ["stable", "stable", "new", "stable"]
    coarse = reader_table(scans[0], **options, min_change=10)
    assert list(coarse["change"][:4]) == ["stable", "stable", "new", "stable"]
    now, then = np.zeros((2, *SHAPE), np.uint8)
    now[0, 0, :3], then[0, 0, :1] = 1, 1
    assert reader_table(now, prior=then)["change"].item() == "stable"  # two voxels more are chance
    assert reader_table(now, prior=then, min_change=0.002)["change"].item() == "grown"


def test_volumes_diameters_and_positions_are_those_of_balls(scans):
    table = reader_table(scans[0], AFFINE, prior=scans[1])
    np.testing.assert_allclose(table.loc[0, ["x", "y", "z"]].astype(float), [0, -10, 15])
    np.testing.assert_allclose(table["sphere_diameter_mm"][:4], [10, 8, 6, 6], atol=0.3)
    # A ball around the center of a voxel reaches half a voxel beyond its last ones.
    for name in ("longest_diameter_mm", "perpendicular_diameter_mm"):
        np.testing.assert_allclose(table[name][:4], [11, 9, 7, 7], atol=0.1)
    np.testing.assert_allclose(table.loc[0, "volume_mL"], ball((30, 10, 10), 5).sum() / 1000)
    np.testing.assert_allclose(
        table["volume_ratio"][:2], [ball((30, 10, 10), 5).sum() / ball((31, 11, 11), 3).sum(), 1]
    )
    vanished = table.iloc[-1]
    np.testing.assert_allclose(vanished[["x", "y", "z"]].astype(float), [-1, 16, 16])
    assert (vanished["volume_mL"], vanished["volume_ratio"]) == (0, 0)
    assert vanished["prior_volume_mL"] == pytest.approx(ball((31, 36, 11), 3).sum() / 1000)
    coarse = reader_table(scans[0], np.diag([2.0, 2, 2, 1]), prior=scans[1])
    for name in ("longest_diameter_mm", "perpendicular_diameter_mm", "sphere_diameter_mm"):
        np.testing.assert_allclose(coarse[name], 2 * table[name], atol=1e-5)
        np.testing.assert_allclose(coarse[f"prior_{name}"], 2 * table[f"prior_{name}"], atol=1e-5)


def test_lesions_within_the_tolerance_are_the_same_and_merged_and_divided_ones_compared_together():
    now, then = np.zeros((2, 20, 20, 20), np.uint8)
    now[5:8, 5:8, 5:8] = 1
    then[9:12, 5:8, 5:8] = 1  # two voxels from surface to surface
    assert reader_table(now, prior=then)["change"].tolist() == ["stable"]
    assert reader_table(now, prior=then, tolerance=1.5)["change"].tolist() == ["new", "vanished"]
    assert reader_table(now, np.diag([2.0, 1, 1, 1]), prior=then)["change"].tolist() == ["new", "vanished"]
    assert reader_table(now, prior=np.roll(now, 1, 0), tolerance=0)["change"].tolist() == ["stable"]
    whole, halves = np.zeros((2, 20, 12, 12), np.uint8)
    whole[4:14, 4:8, 4:8] = 2
    halves[4:8, 4:8, 4:8] = 2
    halves[10:14, 4:8, 4:8] = 1
    merged = reader_table(whole, prior=halves).iloc[0]
    assert (merged["n_prior"], merged["n_now"], merged["change"]) == (2, 1, "stable")
    assert merged["volume_ratio"] == pytest.approx(160 / 128)
    assert merged["prior_finding"] == "marked by both"
    divided = reader_table(halves, prior=whole)
    assert list(divided["n_now"]) == [2, 2]
    assert list(divided["finding"]) == ["marked by both", "candidate"]
    np.testing.assert_allclose(divided["volume_ratio"], 128 / 160)
    assert changes_in_words(divided) == "1 stable (in 2 pieces)"
    assert changes_in_words(reader_table(whole, prior=halves)) == "1 stable"
    assert changes_in_words(reader_table(whole * 0, prior=halves)) == "2 vanished"


def test_probabilities_are_those_inside_each_lesion(scans):
    probability = np.random.default_rng(0).random(SHAPE)
    table = reader_table(scans[0], AFFINE, probability=probability)
    inside = probability[ball((30, 10, 10), 5)]
    assert table.loc[0, "probability"] == inside.max()
    assert table.loc[0, "mean_probability"] == pytest.approx(inside.mean())
    assert (table["change"] == "").all()
    assert table["volume_ratio"].isna().all()
    assert table["n_prior"].eq(0).all()


def test_empty_scans_have_empty_tables():
    nothing = np.zeros((5, 5, 5), np.uint8)
    for prior in (None, nothing):
        table = reader_table(nothing, prior=prior)
        assert len(table) == 0
        assert "change" in table
    lost = nothing.copy()
    lost[2, 2, 2] = 1
    assert reader_table(nothing, prior=lost)["change"].tolist() == ["vanished"]


class Known:
    """Answer with the lesions that a synthetic case is known to have."""

    def __init__(self, cases, level):
        self.cases, self.level = cases, level

    def predict_proba(self, volumes, *, priors=None, masks=None):
        case = next(case for case in self.cases if volumes[0] is case.image or volumes[0] is case.prior)
        label = case.label if volumes[0] is case.image else case.prior_label
        large = label * (np.random.default_rng(0).random(label.shape) > self.level)
        return [np.where(large, 0.9, 0.1).astype(np.float32)]


def test_synthetic_lesions_are_followed_from_scan_to_scan():
    cases = simulate_metastases(4, prior=1.0, shape=(48, 48, 48), spacing=2.0, misregistration=0.0, random_state=5)
    ensemble = SensitivitySpecificityEnsemble(Known(cases, 0), Known(cases, 0))
    table = follow_up(ensemble, cases, min_change=0)
    assert table["case"].nunique() == 4
    assert (table["patient"] == [cases[i].patient for i in table["case"]]).all()
    single = table[(table["n_prior"] <= 1) & (table["n_now"] == 1)]
    truth = {}
    for i, case in enumerate(cases):
        numbers, stored = label_components(case.label, affine=case.affine), label_components(case.label)
        truth |= {(i, numbers[stored == row.number][0]): row.status for row in case.lesions.itertuples()}
    expected = [truth[key] for key in zip(single["case"], single["number"], strict=True)]
    agree = np.mean([a == b for a, b in zip(single["change"], expected, strict=True)])
    assert len(single) >= 8
    assert agree >= 0.8, list(zip(single["change"], expected, strict=True))
    assert (table["finding"] == "marked by both").all()
    without = follow_up(ensemble, cases[:1], prior_labels=[np.zeros(cases[0].shape)])
    assert (without["change"] == "new").all()


def test_a_single_model_and_a_scan_without_prior_can_be_read():
    case = simulate_metastases(1, prior=0.0, shape=(48, 48, 48), spacing=2.0, random_state=2)[0]
    table = follow_up(Known([case], 0), [case])
    assert (table["finding"] == "candidate").all()
    assert (table["change"] == "").all()
    assert len(table) == len(case.lesions)


class Listener:
    """Find nothing, and note what was given."""

    def __init__(self):
        self.given = []

    def predict_proba(self, volumes, *, priors=None, masks=None):
        self.given.append((volumes[0], priors, masks))
        return [np.zeros(volumes[0].shape, np.float32)]


def test_prior_scans_go_with_the_scan_and_brains_with_both():
    scan, prior = np.random.default_rng(0).normal(size=(2, 5, 5, 5)).astype(np.float32)
    brain = np.zeros((5, 5, 5), bool)
    brain[1:4] = True
    model = Listener()
    follow_up(model, [Case("p", scan, prior=prior, brain=brain), Case("q", scan)])
    present, past, alone = model.given
    np.testing.assert_array_equal(present[0], scan)
    np.testing.assert_array_equal(present[1][0], prior)
    # A prior scan is read without a scan before it.
    np.testing.assert_array_equal(past[0], prior)
    assert past[1] is None
    for _, _, masks in (present, past):
        np.testing.assert_array_equal(masks[0], brain)
    assert alone[1:] == (None, None)


def shell(radius, wall, gap=0):
    """Give a ring: a ball without its core, with a square hole of this half width in its wall."""
    distance = np.linalg.norm(np.indices((40, 40, 40)) - 20.0, axis=0)
    label = ((distance <= radius) & (distance > radius - wall)).astype(np.uint8)
    label[20 - gap : 20 + gap, 20 - gap : 20 + gap, 20:] = 0
    return label


def test_a_ring_that_opens_has_not_changed_its_size_and_growth_is_that_of_the_volume_with_the_core():
    closed, opened = shell(14, 2), shell(14, 2, gap=9)
    (row,) = reader_table(opened, prior=closed).to_dict("records")
    assert row["open_ring"]
    assert not row["prior_open_ring"]
    assert row["volume_with_core_mL"] < 0.5 * row["prior_volume_with_core_mL"]
    assert row["change"] == "stable"
    assert row["volume_ratio"] == pytest.approx(row["hull_mL"] / row["prior_hull_mL"])
    thick, thin = shell(10, 6), shell(14, 1.5)
    assert thin.sum() < 1.1 * thick.sum()
    (row,) = reader_table(thin, prior=thick).to_dict("records")
    assert row["change"] == "grown"
    assert row["volume_ratio"] == pytest.approx((14 / 10) ** 3, rel=0.05)
    assert row["prior_volume_mL"] == pytest.approx(thick.sum() / 1000)
