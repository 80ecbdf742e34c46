"""Templates of aligned scans: what a scan is compared with, never itself."""

from dataclasses import replace

import numpy as np
import pytest

from anomaly.detectors.features import look_of
from anomaly.detectors.template import AlignedScans, Deviations, template_of
from anomaly.generators.implants import Look

SHAPE = (10, 11, 9)
MASK = np.linalg.norm(np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2, axis=0) < 4.4


def people(n):
    rng = np.random.default_rng(0)
    pattern = 0.4 + 0.1 * np.sin(np.indices(SHAPE).sum(axis=0))[..., None]
    signals = pattern + 0.03 * rng.standard_normal((n, *SHAPE, 6))
    return [look_of((one * MASK[..., None]).astype(np.float32), MASK) for one in signals]


@pytest.fixture(scope="module")
def aligned():
    return AlignedScans.learn(people(5), 2.0)


def test_a_look_holds_mean_and_spread_of_the_brain():
    signal = np.random.default_rng(1).random((*SHAPE, 5)).astype(np.float32)
    look = look_of(signal, MASK)
    np.testing.assert_allclose(look.mean[MASK], signal.mean(axis=-1)[MASK], rtol=1e-5)
    np.testing.assert_allclose(look.spread[MASK], signal.std(axis=-1)[MASK], rtol=1e-4)
    assert not look.mean[~MASK].any()


def test_a_look_is_the_same_bits_in_every_layout():
    signal = np.random.default_rng(2).uniform(size=(*MASK.shape, 150)).astype(np.float32)
    channels_first = np.moveaxis(np.ascontiguousarray(np.moveaxis(signal, -1, 0)), 0, -1)
    expected = look_of(signal, MASK)
    for stored in (np.asfortranarray(signal), channels_first):
        look = look_of(stored, MASK)
        np.testing.assert_array_equal(look.mean, expected.mean)
        np.testing.assert_array_equal(look.spread, expected.spread)


def test_a_scan_is_compared_with_the_template_of_the_others(aligned):
    stacks = aligned.stacks.copy()
    stacks[2, 0] += 100
    other = replace(aligned, stacks=stacks)
    np.testing.assert_array_equal(other.left_out(2), aligned.left_out(2))
    assert (other.left_out(1)[0] > aligned.left_out(1)[0] + 10).any()


def test_the_template_of_the_others_holds_no_scan_of_the_same_subject(aligned):
    stacks = aligned.stacks.copy()
    stacks[3, 0] += 100
    subjects = np.array([0, 1, 2, 2, 3])
    same, changed = (replace(aligned, stacks=s, subjects=subjects) for s in (aligned.stacks, stacks))
    np.testing.assert_array_equal(changed.left_out(2), same.left_out(2))
    assert (changed.left_out(1)[0] > same.left_out(1)[0] + 10).any()
    assert same.others(2).tolist() == [0, 1, 4]


def test_templates_are_mean_and_standard_deviation(aligned):
    template = template_of(aligned.stacks)
    inner = np.linalg.norm(np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2, axis=0) < 3
    for number, k in ((0, 0), (2, 1)):
        expected = aligned.stacks[:, k].mean(axis=0)[inner]
        np.testing.assert_allclose(template[number][inner], expected, rtol=1e-4)
    np.testing.assert_allclose(template[6], aligned.stacks[:, 2].mean(axis=0), atol=1e-6)
    assert (template[[1, 3]] > 0).all()


def test_deviations_do_not_hold_the_level_of_the_whole_brain(aligned):
    look, expected = aligned.looks[0], aligned.left_out(0)
    brighter = Look(np.where(MASK, look.mean + 0.1, 0).astype(np.float32), look.spread, MASK)
    first, second = (Deviations.of(one, expected) for one in (look, brighter))
    np.testing.assert_allclose(first.z_mean, second.z_mean, atol=1e-3)
    np.testing.assert_array_equal(first.z_spread, second.z_spread)
