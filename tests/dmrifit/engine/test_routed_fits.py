"""Routing of starts: which voxels get more than one, the same everywhere, and kept on disk."""

import os

import numpy as np
import pytest

from dmrifit import MODELS, Parameter, Protocol, SignalModel, fit_voxels
from dmrifit.engine import fit_problem, fitting
from dmrifit.engine.fit_settings import FitSettings

RELAXATION = Protocol.preset("cohort1")
MODEL = MODELS["t2-ivim-kurtosis"]
LOW = np.array([100.0, 0.0, 4, 150, 0.2, 0.0, 30])
HIGH = np.array([100.0, 1.0, 90, 250, 2.5, 1.5, 130])


@pytest.fixture(scope="module")
def signals():
    rng = np.random.default_rng(850)
    clean = MODEL.signal(LOW + (HIGH - LOW) * rng.uniform(size=(3000, 7)), RELAXATION)
    sigma = clean[:, :1] / 40
    noise = rng.normal(size=(2, *clean.shape)) * sigma
    return np.hypot(clean + noise[0], noise[1]), sigma[:, 0]


@pytest.fixture
def own_files(monkeypatch, tmp_path):
    """Keep weights of this test away from those of other tests."""
    monkeypatch.setattr(fit_problem, "_known", {})
    monkeypatch.setattr(fit_problem, "_N_VOXELS", 2048)
    kernel_folder = tmp_path

    def problem(**settings):
        given = FitSettings(**settings)
        made = fit_problem.Problem(MODEL, RELAXATION, given, given.box(MODEL), {})
        weights = fit_problem.routing_weights

        class Elsewhere:
            __file__ = str(kernel_folder / "kernel.py")

            def __getattr__(self, name, kernel=made.kernel):
                return getattr(kernel, name)

        made.kernel = Elsewhere()
        return made, weights

    return problem


def fields(result):
    return (
        result.parameters, result.standard_errors, result.cost, result.status, result.n_iter,
        result.starts_disagree,
    )  # fmt: skip


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("n_starts", ["auto", "thorough"])
def test_routed_fits_have_the_same_bits_in_any_chunks_and_threads(signals, monkeypatch, floor, n_starts):
    data, sigma = signals
    noise = sigma if floor else None
    together = fit_voxels(data, RELAXATION, MODEL, sigma=noise, n_starts=n_starts)
    monkeypatch.setattr(fitting, "_CHUNK", 77)
    apart = fit_voxels(data, RELAXATION, MODEL, sigma=noise, n_starts=n_starts, n_threads=3)
    order = np.random.default_rng(0).permutation(len(data))
    noise = None if noise is None else noise[order]
    mixed = fit_voxels(data[order], RELAXATION, MODEL, sigma=noise, n_starts=n_starts)
    for expected, chunked, shuffled in zip(*map(fields, (together, apart, mixed)), strict=True):
        np.testing.assert_array_equal(chunked, expected)
        np.testing.assert_array_equal(shuffled, expected[order])


def test_routed_fits_are_nearly_as_good_as_all_starts_in_half_the_iterations(signals):
    data, sigma = signals
    for floor, share in ((None, 0.996), (sigma, 0.985)):
        # Without a method, a fit chooses by its own ends where it has a noise floor.
        options = {"sigma": floor, "method": "nlls"}
        fits = [fit_voxels(data, RELAXATION, MODEL, n_starts=n, **options) for n in (3, "auto", 1, "thorough")]
        every, routed, one, thorough = fits
        best = np.min([every.cost, routed.cost, one.cost, thorough.cost], axis=0)
        good = [(fit.cost <= best * (1 + 1e-3)).mean() for fit in (one, routed, thorough)]
        assert good[0] < good[1] - 0.01
        assert share < good[1] <= good[2] + 1e-3
        if floor is None:
            assert routed.n_iter.sum() < 0.75 * every.n_iter.sum()


@pytest.mark.parametrize("damage", ["changed", "folder", "of another box"])
def test_damaged_weights_are_learned_again(own_files, tmp_path, monkeypatch, damage):
    problem, weights = own_files()
    expected = weights(problem, floored=False)
    (path,) = tmp_path.glob("dmrifit_starts_*")
    content = path.read_bytes()
    if damage == "changed":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        narrow = FitSettings(bounds={"Dv": (5.0, 80.0)})
        narrow = fit_problem.Problem(MODEL, RELAXATION, narrow, narrow.box(MODEL), {})
        narrow.kernel = problem.kernel
        weights(narrow, floored=False)
        (foreign,) = (p for p in tmp_path.glob("dmrifit_starts_*") if p != path)
        path.write_bytes(foreign.read_bytes())
    monkeypatch.setattr(fit_problem, "_known", {})
    np.testing.assert_array_equal(weights(problem, floored=False), expected)
    assert path.read_bytes() == content
    assert not list(tmp_path.glob("*.tmp"))


def test_weights_on_disk_are_read_and_not_learned(own_files, monkeypatch):
    problem, weights = own_files()
    expected = weights(problem, floored=False)
    monkeypatch.setattr(fit_problem, "_known", {})
    monkeypatch.setattr(fit_problem, "_calibrate", None)
    np.testing.assert_array_equal(weights(problem, floored=False), expected)


def test_a_full_disk_does_not_stop_a_fit(own_files, tmp_path, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    problem, weights = own_files()
    monkeypatch.setattr(os, "fsync", no_space)
    assert np.isfinite(weights(problem, floored=False)).all()
    assert not list(tmp_path.iterdir())


def test_fits_that_are_not_routed_give_all_starts_to_all(signals):
    data = signals[0][:64]
    box = {"T2v": np.full(64, 200.0)}
    np.testing.assert_array_equal(
        fit_voxels(data, RELAXATION, MODEL, fixed=box).n_iter,
        fit_voxels(data, RELAXATION, MODEL, fixed=box, n_starts=3).n_iter,
    )
    protocol = Protocol([0, 300, 900])
    adc = MODELS["adc"].signal([[100.0, 1.0], [50.0, 2.0]], protocol)
    one = fit_voxels(adc, protocol, "adc", n_starts=1)
    np.testing.assert_array_equal(fit_voxels(adc, protocol, "adc").n_iter, one.n_iter)


def test_models_bounds_and_fixed_values_of_a_user_are_routed():
    protocol = Protocol([0, 20, 60, 150, 400, 800, 1000])
    model = SignalModel.from_expression(
        "S0*(f*exp(-b*Dv) + (1 - f)*exp(-b*Dt)) + C",
        [
            Parameter("S0", "signal", 0, np.inf),
            Parameter("f", "", 0, 1),
            Parameter("Dv", "µm²/ms", 4, 100),
            Parameter("Dt", "µm²/ms", 0.2, 3),
            Parameter("C", "", -np.inf, np.inf),
        ],
        name="offset-ivim",
    )
    rng = np.random.default_rng(851)
    truth = np.column_stack(
        [np.ones(400), rng.uniform(0.05, 0.4, 400), rng.uniform(8, 60, 400), rng.uniform(0.5, 2, 400), np.zeros(400)]
    )
    data = model.signal(truth, protocol) + rng.normal(scale=0.01, size=(400, 7))
    data = np.abs(data)
    for options in ({}, {"fixed": {"C": 0.0}}, {"bounds": {"Dv": (4, 60)}}, {"sigma": 0.01}):
        routed = fit_voxels(data, protocol, model, **options)
        every = fit_voxels(data, protocol, model, n_starts=3, **options)
        assert (routed.cost <= every.cost * (1 + 1e-3)).mean() > 0.97


def test_signals_that_cannot_be_written_to_are_fitted_without_compiling_again(signals):
    data = signals[0][:32].copy()
    expected = fit_voxels(data, RELAXATION, MODEL).parameters
    data.flags.writeable = False
    np.testing.assert_array_equal(fit_voxels(data, RELAXATION, MODEL).parameters, expected)
    from dmrifit.engine.kernels import compiler

    assert len(compiler.load(None).prepare.signatures) == 1
    assert len(compiler.load(None).search.signatures) == 1
