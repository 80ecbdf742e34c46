"""Ruff and mypy find nothing."""


def test_ruff_finds_nothing(run_python):
    result = run_python("-m", "ruff", "check", "--output-format", "concise")
    assert result.returncode == 0, result.stdout


def test_types_of_the_packages_agree(run_python):
    result = run_python("-m", "mypy", "--no-error-summary")
    assert result.returncode == 0, result.stdout
