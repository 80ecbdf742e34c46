"""What every test shares: the reference data, figures without a screen, repeatable examples."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports matplotlib; processes that tests start inherit it.
os.environ["MPLBACKEND"] = "Agg"

DATA_REQUIRED = os.environ.get("DMRIFIT_REQUIRE_DATA") == "1"

# Times vary between machines, so no example has a deadline. Where a run decides, it repeats the same
# examples; elsewhere hypothesis looks for new ones.
settings.register_profile("explore", deadline=None)
settings.register_profile("decide", deadline=None, derandomize=True)
settings.load_profile("decide" if DATA_REQUIRED or os.environ.get("CI") else "explore")


@pytest.fixture(scope="session")
def data_dir(pytestconfig: pytest.Config) -> Path:
    """Folder of the reference scans, named by DMRIFIT_DATA, absolute or relative to the project."""
    named = os.environ.get("DMRIFIT_DATA", "")
    folder = pytestconfig.rootpath / named
    if named and folder.is_dir():
        return folder.resolve()
    reason = f"DMRIFIT_DATA names no folder of reference scans: {named!r}"
    if DATA_REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what reads the reference scans, so that ``-m "not data"`` leaves it out."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
