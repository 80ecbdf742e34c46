"""What tests of figures and pages share: small synthetic scans, and maps that know the lesions more or less."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage


@pytest.fixture(scope="session")
def brain():
    """Draw a person's brain on a grid of 4 mm."""
    from anomaly.simulate.persons import draw_brain, standard_brain

    return draw_brain(standard_brain((4.0,) * 3), (40, 48, 32), (4.0,) * 3, np.random.default_rng(0))


SHAPE = (18, 20, 16)
GRID = np.ogrid[tuple(slice(n) for n in SHAPE)]


def ball(center, radius):
    return sum((axis - c) ** 2 for axis, c in zip(GRID, center, strict=True)) <= radius**2


def _make_case(i, seed, *, lesion):
    """Give a synthetic case: a cortex around white matter, ventricles and nuclei, perhaps a lesion that grows."""
    from anomaly.scans.cases import Case

    rng = np.random.default_rng([seed, i, lesion])
    brain = ball((8.5, 9.5, 7.5), 7.6)
    tissue = np.where(brain, 1, 0)
    tissue[brain & ~ball((8.5, 9.5, 7.5), 6.4)] = 2
    tissue[ball((8, 12, 8), 1.5)] = 4
    tissue[ball((8, 7, 8), 1.8)] = 3
    center = rng.uniform(5, 11, 3)
    mask, later = ball(center, rng.uniform(2, 3)) & brain, ball(center + 1, 4) & brain
    return Case(
        f"{'lesion' if lesion else 'healthy'} {i}",
        rng.uniform(0.2, 0.6, (*SHAPE, 3)).astype(np.float32) * brain[..., None],
        brain,
        tissue=tissue,
        lesion=mask if lesion else None,
        followup=(mask | later) if lesion else None,
        affine=np.diag([4.0, 4.0, 4.0, 1.0]),
        kind=("infiltrating", "cellular")[i % 2] if lesion else "",
        grade=("glioblastoma", "WHO II")[i % 2] if lesion else "",
        synthetic=True,
    )


def _make_map(case, seed, strength):
    """Give a smooth random map that is raised in the lesion."""
    rng = np.random.default_rng([seed, *case.name.encode()])
    values = 2 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1)
    if case.lesion is not None:
        values = values + strength * case.lesion
    return np.where(case.brain, values, 0).astype(np.float32)


def _cohort(seed, n=5, n_healthy=4):
    """Give cases, maps of two methods, healthy scans and their maps."""
    cases = [_make_case(i, seed, lesion=True) for i in range(n)]
    healthy = [_make_case(i, seed, lesion=False) for i in range(n_healthy)]
    maps = {name: [_make_map(case, seed, s) for case in cases] for name, s in (("weak", 0.4), ("strong", 2.0))}
    free = {name: [_make_map(case, seed + 1, 0) for case in healthy] for name in maps}
    return cases, maps, healthy, free


@pytest.fixture(scope="session")
def compared():
    """Give a comparison of two methods on few scans."""
    from anomaly import evaluate_detectors

    cases, maps, healthy, free = _cohort(3, 4, 3)
    maps, free = ({"sharp": some["strong"], "dull $x_1$": some["weak"]} for some in (maps, free))
    tables = evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=free)
    return SimpleNamespace(cases=cases, healthy=healthy, maps=maps, healthy_maps=free, tables=tables)


@pytest.fixture(scope="session")
def cohort():
    return _cohort


@pytest.fixture(scope="session")
def evaluated():
    from anomaly import evaluate_detectors

    cases, maps, healthy, free = _cohort(31)
    return cases, maps, healthy, free, evaluate_detectors(cases, maps, healthy=healthy, healthy_maps=free)


@pytest.fixture(scope="session")
def row_of():
    """Give the function that finds the one row of a table with these values."""

    def find(table, **keys):
        for key, value in keys.items():
            table = table[table[key] == value]
        assert len(table) == 1
        return table.iloc[0]

    return find


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """Synthetic series, written by the command."""
    from anomaly.cli.study_commands import PersonOptions, simulate
    from dmrifit.cli.case_runs import SimulationRun

    folder = tmp_path_factory.mktemp("cli") / "cases"
    simulate(8, 2, PersonOptions(directions=8, shape=(24, 28, 20), spacing=6.5), SimulationRun(folder))
    return folder


@pytest.fixture(scope="session")
def model(cases, tmp_path_factory):
    """A model file, written by the command."""
    from anomaly.cli.study_commands import ScanOptions, train
    from dmrifit.cli.training_files import TrainingFiles

    path = tmp_path_factory.mktemp("model") / "z.dmrifit"
    options = {"detector": "gaussian", "set_": {"side": "low"}, "calibration": "2", "rate": 0.02}
    train(cases / "healthy.tsv", files=TrainingFiles(path), scans=ScanOptions(), **options)
    return path
