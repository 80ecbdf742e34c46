"""Volumes of cases, their numbers and names in errors, and digests."""

import hashlib

import numpy as np
import pytest

from dmrifit.networks import volume_cases
from dmrifit.networks.volume_cases import volume_inputs


def test_inputs_have_channels_first_and_are_a_copy_that_may_be_changed():
    volume = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    channels = volume_inputs(volume)
    assert channels.shape == (5, 2, 3, 4)
    assert channels.flags.c_contiguous
    for number in range(5):
        np.testing.assert_array_equal(channels[number], volume[..., number].astype(np.float32))
    volume = np.ones((2, 2, 2), np.float32)
    volume.flags.writeable = False
    channels = volume_inputs(volume)
    channels[:] = 7
    assert (volume == 1).all()


class OwnError(ValueError):
    """An error of another kind, which is passed on as it is."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("too dark"), "case 4: too dark"),
        (ValueError("case 9: too dark"), "case 9: too dark"),
        (OwnError("too dark"), "too dark"),
        (TypeError("too dark"), "too dark"),
    ],
)
def test_errors_of_values_are_given_the_number_of_their_case_once(error, message):
    with pytest.raises(type(error)) as raised, volume_cases.naming(4):
        raise error
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("case 1: too dark"), "cases.tsv: case anna: too dark"),
        (ValueError("case 0 has 2 labels"), "cases.tsv: case otto has 2 labels"),
        (ValueError("case 2: too dark"), "case 2: too dark"),
        (ValueError("case 1b: too dark"), "case 1b: too dark"),
        (ValueError("in case 1: too dark"), "in case 1: too dark"),
        (OwnError("case 1: too dark"), "case 1: too dark"),
        (KeyError("case 1"), "'case 1'"),
    ],
)
def test_numbers_of_cases_are_replaced_by_their_names(error, message):
    with pytest.raises(type(error)) as raised, volume_cases.called(["otto", "anna"], "cases.tsv"):
        raise error
    assert str(raised.value) == message


def digest_of(content):
    digest = hashlib.sha256()
    volume_cases.add_to_digest(digest, content)
    return digest.hexdigest()


def test_every_difference_changes_the_digest():
    array = np.arange(6, dtype=np.float32)
    changed = array.copy()
    changed[5] = np.nextafter(np.float32(5), np.float32(6))
    contents = [array, array.reshape(2, 3), array.astype(np.float64), array.view(np.int32), changed, array[::-1]]
    contents += [array[:1], array[0], {"image": array}, {"prior": array}, [array, array]]
    assert len({digest_of(content) for content in contents}) == len(contents)
