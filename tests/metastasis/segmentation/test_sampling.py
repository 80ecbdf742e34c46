"""Segments: where they lie, that their resolutions belong together, how they are varied."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from metastasis import DeepMedicSegmenter
from metastasis.segmentation import sampling
from metastasis.segmentation.sampling import (
    MISTAKEN,
    case_inputs,
    cell_means,
    draw_segments,
    lesion_voxels,
    lesion_weights,
    locally_scaled,
    marked_evenly,
    n_extra_channels,
    network_arguments,
    normalized,
    take_cells,
    take_window,
)

SIZE, LAYERS = 11, 2


def settings(n_layers=LAYERS, size=SIZE, **more):
    """Give what of a segmenter says how segments are drawn."""
    values = {
        "sampling": "lesion",
        "augment": True,
        "prior_dropout": 0.0,
        "missing_prior": "validity",
        "network": "deepmedic",
        "appearance": 0.0,
        "scaling": "local",
        "prior_": "path",
        "low_resolution_input": "average",
        "_factors": (),
    }
    return SimpleNamespace(**(values | {"_n_layers": n_layers, "_size": size} | more))


def case(shape=(20, 17, 15), *, seed=0, prior=None):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(1, *shape)).astype(np.float32)
    found = {"image": image, "brain": np.ones(shape, dtype=bool)}
    if prior is not None:
        found |= {"prior": rng.normal(size=(1, *shape)).astype(np.float32), "valid": np.float32(prior)}
    return found


def target(shape=(20, 17, 15), boxes=(((3, 4, 5), 3), ((14, 12, 9), 1))):
    label = np.zeros(shape, dtype=np.uint8)
    for first, size in boxes:
        label[tuple(slice(a, a + size) for a in first)] = 1
    voxels, ends = lesion_voxels(label)
    return {"label": label, "voxels": voxels, "ends": ends}


def drawn(segmenter, n, *, inputs=None, targets=None, seed=0):
    segmenter.segments_per_epoch = n
    with_cells = [
        one | {f"low_{f}": cell_means(one["image"], f, segmenter.low_resolution_input) for f in segmenter._factors}
        for one in inputs or [case()]
    ]
    return list(draw_segments(segmenter, with_cells, targets or [target()], np.random.default_rng(seed)))


def test_the_brain_has_mean_0_and_deviation_1():
    rng = np.random.default_rng(0)
    volume = np.zeros((2, 8, 8, 8))
    volume[:, 2:6, 2:6] = rng.normal(500, 40, (2, 4, 4, 8))
    found = normalized(volume)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 2:6, 2:6].mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found[:, 2:6, 2:6].std(axis=(1, 2, 3)), 1, atol=1e-5)
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[3:5, 3:5] = True
    inside = normalized(volume, mask)
    np.testing.assert_allclose(inside[:, mask].mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(normalized(volume * 7, mask), inside, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["average", "stride"])
@pytest.mark.parametrize("factor", [3, 5])
def test_cells_are_those_of_the_voxels_they_cover(factor, how):
    volume = np.random.default_rng(0).normal(size=(1, 9, 8, 7)).astype(np.float32)
    # Two layers lose two cells on either side of an output.
    first, count = (-4, 2, -11), (4, 5, 8)
    begin, size = [a + 2 * factor for a in first], [factor * (n - 4) for n in count]
    found = take_cells(cell_means(volume, factor, how), factor, begin, size, 2)
    assert found.shape == (1, *count)
    padded = np.pad(volume[0], 40, mode="edge")
    for place in np.ndindex(count):
        begin = [40 + a + factor * i for a, i in zip(first, place, strict=True)]
        block = padded[tuple(slice(a, a + factor) for a in begin)]
        middle = block[(factor // 2,) * 3]
        assert found[(0, *place)] == pytest.approx(block.mean() if how == "average" else middle, abs=1e-6)


@given(st.tuples(*[st.integers(-9, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_a_window_goes_on_beyond_the_border_with_the_outermost_voxels(first, size):
    volume = np.arange(4 * 5 * 3).reshape(1, 4, 5, 3)
    padded = np.pad(volume, [(0, 0)] + [(20, 20)] * 3, mode="edge")
    expected = padded[(slice(None), *(slice(20 + a, 20 + a + n) for a, n in zip(first, size, strict=True)))]
    assert np.array_equal(take_window(volume, first, size), expected)


def test_lesion_voxels_are_listed_lesion_by_lesion():
    label = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(16, 16, 16)), 1) > 0.15
    voxels, ends = lesion_voxels(label)
    numbers, n = ndimage.label(label, np.ones((3, 3, 3)))
    parts = np.split(voxels, ends[:-1])
    assert len(ends) == n > 3
    for number, part in enumerate(parts, start=1):
        assert np.array_equal(np.sort(part), np.flatnonzero(numbers == number))
    assert [len(part) for part in lesion_voxels(np.zeros((4, 4, 4)))] == [0, 0]


@pytest.mark.parametrize(("drawing", "share"), [("lesion", 0.5), ("voxel", 1 / 28)])
def test_lesions_or_their_voxels_are_equally_likely(drawing, share):
    # Two lesions of 27 voxels and of 1, too far from each other for one segment.
    shape = (40, 20, 20)
    inputs = [case(shape)]
    targets = [target(shape, (((3, 8, 8), 3), ((35, 9, 9), 1)))]
    sampler = settings(sampling=drawing, augment=False)
    samples = drawn(sampler, 1200, inputs=inputs, targets=targets)[::2]
    small = np.mean([label.sum() == 1 for _, label in samples])
    assert small == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 600))


def test_cases_share_the_segments_by_their_lesions():
    inputs = [case(seed=0), case(seed=1)]
    targets = [target(boxes=()), target()]
    samples = drawn(settings(augment=False), 40, inputs=inputs, targets=targets)
    assert all(label.any() for _, label in samples[::2])
    with pytest.raises(ValueError, match="none of the 1 cases to learn from has a lesion"):
        drawn(settings(), 2, inputs=inputs[:1], targets=targets[:1])


def test_background_segments_lie_in_the_brain_and_two_thirds_at_mistakes():
    inside = case((24, 24, 24))
    inside["brain"] = np.zeros((24, 24, 24), dtype=bool)
    inside["brain"][12, 12, 12] = True
    inside["image"][0, 12, 12, 12] = 100
    sampler = settings(augment=False)
    samples = drawn(sampler, 20, inputs=[inside], targets=[target((24, 24, 24))])
    assert {int(sample["image"].argmax()) for sample, _ in samples[1::2]} == {(SIZE**3) // 2}
    inside["brain"][:] = False
    assert len(drawn(sampler, 4, inputs=[inside], targets=[target((24, 24, 24))])) == 4
    mistaken = np.ravel_multi_index((9, 9, 9), (20, 17, 15))
    told = target() | {"mistaken": np.array([mistaken])}
    segments = drawn(settings(augment=False), 600, targets=[told])
    image = case()["image"][0]
    middles = [sample["image"][0, SIZE // 2, SIZE // 2, SIZE // 2] for sample, _ in segments[1::2]]
    assert np.mean(np.array(middles) == image[9, 9, 9]) == pytest.approx(2 / 3, abs=0.08)


def test_no_background_segment_has_a_lesion_in_its_middle():
    shape = (24, 24, 24)
    inputs = case(shape)
    inner = (slice(8, 16),) * 3
    inputs["brain"] = np.zeros(shape, dtype=bool)
    inputs["brain"][inner] = True
    half = target(shape, [((8, 8, 8), 4), ((12, 12, 8), 4), ((8, 12, 12), 4), ((12, 8, 12), 4)])
    # In a brain this small guesses fail, and its voxels are listed.
    rare = inputs | {"brain": np.zeros(shape, dtype=bool)}
    rare["brain"][12, 12, 11:13] = True
    single = target(shape, [((12, 12, 12), 1)])
    middle = (0, *(SIZE // 2,) * 3)
    for volumes, labels in ((inputs, half), (rare, single)):
        samples = drawn(settings(), 160, inputs=[volumes], targets=[labels])
        assert {int(label[middle]) for _, label in samples[::2]} == {1}
        assert {int(label[middle]) for _, label in samples[1::2]} == {0}


def test_the_answers_of_a_segment_reach_the_border_of_the_volume_and_not_beyond():
    shape = (20, 17, 15)
    sampler = settings(augment=False)
    # Of 11 voxels the 7 from number 2 on are answered.
    for corner, number in (((0, 0, 0), 2), ((19, 16, 14), 8)):
        ((_, label),) = drawn(sampler, 1, inputs=[case(shape)], targets=[target(shape, [(corner, 1)])])
        answered = np.argwhere(label[0, 2:9, 2:9, 2:9]) + 2
        assert answered.tolist() == [[number] * 3]


@pytest.mark.parametrize("how", ["average", "stride"])
def test_resolutions_of_a_segment_belong_together_however_it_is_turned(how, monkeypatch):
    """A volume whose voxels say where they are: cells are the mean of, or the voxel in, what they cover."""
    monkeypatch.setattr(sampling, "_INTENSITY_SCALE", 0.0)
    shape = (26, 25, 24)
    where = np.stack(np.indices(shape)).astype(np.float32)
    inputs = {"image": where, "brain": np.ones(shape, dtype=bool), "prior": where[:1], "valid": np.float32(1)}
    # Small enough that a segment with all its cells can lie inside of the volume.
    sampler = settings(1, 5, _factors=(3, 5), low_resolution_input=how)
    targets = [target(shape, [((11, 11, 11), 3)])]
    turns = set()
    for sample, label in drawn(sampler, 150, inputs=[inputs], targets=targets)[::2]:
        image = sample["image"]
        assert np.array_equal(sample["prior"], image[:1])
        expected = targets[0]["label"][tuple(image.astype(int))]
        assert np.array_equal(label[0], expected)
        steps = [image[:, i, j, k] - image[:, 0, 0, 0] for i, j, k in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
        turns.add(tuple(int(n) for step in steps for n in step))
        for factor in (3, 5):
            low = sample[f"low_{factor}"]
            # The first cell of the output begins at its first voxel, in the middle of the cells.
            middle = image[:, 1, 1, 1] + sum(steps) * (factor - 1) / 2
            np.testing.assert_allclose(low[:, 1, 1, 1], middle, atol=1e-5)
    assert len(turns) > 30


def test_all_turns_come_equally_often(monkeypatch):
    monkeypatch.setattr(sampling, "_INTENSITY_SCALE", 0.0)
    corner = np.zeros((9, 9, 9), dtype=np.float32)
    corner[0, 1, 2] = 1
    inputs = {"image": corner[None], "brain": np.ones((9, 9, 9), dtype=bool)}
    sampler = settings(0, 9)
    samples = drawn(sampler, 2400, inputs=[inputs], targets=[target((9, 9, 9), [((4, 4, 4), 1)])])
    places = [tuple(np.unravel_index(sample["image"].argmax(), (9, 9, 9))) for sample, _ in samples]
    ends = {0: (0, 8), 1: (1, 7), 2: (2, 6)}
    whole = {p for order in itertools.permutations((0, 1, 2)) for p in itertools.product(*(ends[k] for k in order))}
    counts = [places.count(place) for place in sorted(whole)]
    assert len(counts) == 48
    assert sum(counts) == 2400
    assert 15 < min(counts) < max(counts) < 95


def test_scans_and_priors_are_scaled_by_themselves_and_priors_taken_away_as_often_as_asked_for():
    inputs = case(prior=1)
    inputs["image"][:] = inputs["prior"][:] = 1
    samples = [sample for sample, _ in drawn(settings(_factors=(3,)), 400, inputs=[inputs])]
    scales = np.array([[np.unique(sample[key])[0] for key in ("image", "low_3", "prior")] for sample in samples])
    assert np.array_equal(scales[:, 0], scales[:, 1])
    assert 0.9 <= scales.min() < 0.905
    assert 1.095 < scales.max() <= 1.1
    assert abs(np.corrcoef(scales[:, 0], scales[:, 2])[0, 1]) < 0.4
    plain = drawn(settings(_factors=(3,), augment=False), 4, inputs=[inputs])
    assert all(sample["image"].min() == sample["image"].max() == 1 for sample, _ in plain)
    inputs = case(prior=1)
    sampler = settings(prior_dropout=0.25)
    samples = [sample for sample, _ in drawn(sampler, 400, inputs=[inputs])]
    gone = np.array([sample["valid"] == 0 for sample in samples])
    assert gone.mean() == pytest.approx(0.25, abs=0.09)
    assert all(np.any(sample["prior"]) != missing for sample, missing in zip(samples, gone, strict=True))
    missing = case(prior=0)
    assert not any(sample["valid"] for sample, _ in drawn(sampler, 40, inputs=[missing]))


def test_weights_fall_with_size_and_segments_of_weighted_targets_have_two_channels_and_move():
    label = np.zeros((30, 30, 30), np.uint8)
    label[1:3, 1:3, 1:3] = 1  # 8 voxels
    label[10:20, 10:20, 10:20] = 1  # 1000
    ignored = np.zeros_like(label)
    ignored[25] = 1
    weights = lesion_weights(label, ignored)
    assert weights[1, 1, 1] == pytest.approx((600 / 8) ** 0.65, rel=1e-3)
    assert weights[15, 15, 15] == pytest.approx((600 / 1000) ** 0.65, rel=1e-3)
    assert (weights[25] == 0).all()
    assert weights[0, 0, 0] == 1
    volume, truth = case(), target()
    truth["weight"] = lesion_weights(truth["label"], np.zeros_like(truth["label"]))
    sampler = settings(0, augment=False, network="small_unet")
    inputs = {key: volume[key] for key in ("image", "brain")}
    segments = [label for _, label in drawn(sampler, 30, inputs=[inputs], targets=[truth])]
    assert all(segment.shape == (2, SIZE, SIZE, SIZE) for segment in segments)
    middle = SIZE // 2
    hits = [bool(segment[0, middle, middle, middle]) for segment in segments[::2]]
    assert 0 < sum(hits) < len(hits)
    for segment in segments:
        assert (segment[1][segment[0] == 0] == 1).all()
        assert (segment[1][segment[0] == 1] > 1).all()


def test_local_scaling_ignores_a_smooth_field():
    rng = np.random.default_rng(0)
    brain = np.ones((40, 40, 40), bool)
    volume = rng.normal(100, 3, (1, 40, 40, 40))
    volume[0, 10:14, 10:14, 10:14] = 180
    field = np.exp(np.linspace(-0.1, 0.1, 40))[:, None, None]
    plain, biased = locally_scaled(volume, brain), locally_scaled(5 * volume * field, brain)
    assert np.median(plain) == pytest.approx(1, abs=0.01)
    assert plain[0, 12, 12, 12] == pytest.approx(1.8, abs=0.05)
    assert np.abs(biased - plain).max() < 0.2
    with pytest.raises(ValueError, match=r"^the image has no positive value"):
        locally_scaled(0 * volume, brain)


def test_appearance_varies_contrast_and_keeps_what_is_stripped(monkeypatch):
    monkeypatch.setattr(sampling, "_INTENSITY_SCALE", 0.0)
    values = np.ones((1, 24, 24, 24), np.float32)
    values[:, 12:] = 1.5
    values[:, :, :6] = 0
    inputs = [{"image": values, "brain": values[0] > 0}]
    targets = [target(values.shape[1:])]
    sampler = settings(0, 16, appearance=1.0)
    plain = drawn(settings(0, 16), 12, inputs=inputs, targets=targets)
    varied = drawn(sampler, 12, inputs=inputs, targets=targets)
    again = drawn(sampler, 12, inputs=inputs, targets=targets)
    brightest = [sample["image"].max() for sample, _ in varied]
    assert np.std(brightest) > 0.05
    # Both begin with the same segment, which is then varied.
    first, other = plain[0][0]["image"], varied[0][0]["image"]
    assert ((first == 0) == (other == 0)).mean() > 0.99
    assert other[first == 1].mean() == pytest.approx(1, abs=0.1)
    for (one, _), (two, _) in zip(varied, again, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])


def test_a_large_mistake_is_marked_in_part_and_small_ones_as_a_whole():
    label = np.zeros((40, 40, 40), np.uint8)
    label[4:7, 4:7, 4:7] = 1
    probability = np.zeros(label.shape, np.float32)
    probability[4:7, 4:7, 4:7] = 0.9
    probability[20:38, 10:30, 10:30] = 0.5  # 7,200 voxels
    probability[12:15, 2:5, 34:37] = 0.2
    probability[2, 30:32, 30:32] = 0.05  # too little to be a mistake
    marked = marked_evenly(label, probability, 0)
    is_marked = marked == MISTAKEN
    assert (marked[label > 0] == 1).all()
    assert is_marked[12:15, 2:5, 34:37].all()
    large = is_marked[20:38, 10:30, 10:30]
    assert 230 < large.sum() < 370  # 300 ± 4 standard deviations
    # From all of it.
    assert min(large.any(axis=other).mean() for other in ((1, 2), (0, 2), (0, 1))) > 0.9
    assert is_marked.sum() == large.sum() + 27
    assert (marked == marked_evenly(label, probability, 0)).all()
    assert (marked != marked_evenly(label, probability, 1)).any()


def network(prior="path", missing_prior="validity"):
    model = DeepMedicSegmenter(prior=prior, missing_prior=missing_prior)
    model.prior_ = prior
    return model


@pytest.fixture
def scan():
    volume = np.random.default_rng(0).normal(100, 5, (7, 6, 5)).astype(np.float32)
    volume[0] = 0
    return volume


def test_inputs_are_scaled_over_the_brain(scan):
    inputs = case_inputs(network(prior=None), (scan, None, None))
    assert set(inputs) == {"image", "brain", "low_3", "low_5"}
    assert np.array_equal(inputs["brain"], scan != 0)
    brain_values = inputs["image"][0][scan != 0]
    np.testing.assert_allclose([brain_values.mean(), brain_values.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize(("prior", "valid"), [(None, 0), (0, 0), (3, 1)])
def test_a_prior_is_scaled_like_the_scan_and_a_missing_one_is_zeros_that_are_not_valid(scan, prior, valid):
    inputs = case_inputs(network(), (scan, None if prior is None else prior * scan, None))
    np.testing.assert_allclose(inputs["prior"], valid * inputs["image"], atol=1e-5)
    assert inputs["valid"] == valid


@pytest.mark.parametrize("mask", [np.zeros((7, 6, 5), bool), np.ones((2, 2, 2), bool)])
def test_a_mask_that_does_not_fit_is_refused(scan, mask):
    with pytest.raises(ValueError, match="a mask of shape"):
        case_inputs(network(), (scan, None, mask))


@pytest.mark.parametrize(
    ("prior", "missing_prior", "names", "n_channels"),
    [
        ("path", "validity", {"image", "prior", "valid"}, 1),
        ("path", "zeros", {"image", "prior"}, 1),
        ("channel", "validity", {"image"}, 3),
        ("channel", "zeros", {"image"}, 2),
        (None, "validity", {"image"}, 1),
    ],
)
def test_the_network_gets_the_arguments_of_its_forward_pass(scan, prior, missing_prior, names, n_channels):
    model = network(prior, missing_prior)
    arguments = network_arguments(model, case_inputs(model, (scan, scan, None)))
    assert set(arguments) == names | {"low_3", "low_5"}
    assert len(arguments["image"]) == n_channels == 1 + n_extra_channels(model)
