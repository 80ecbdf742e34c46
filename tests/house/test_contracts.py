"""The packages keep the import contracts of setup.cfg."""


def test_the_packages_keep_the_contracts(run_python):
    lint = "from importlinter.cli import import_linter\nimport_linter(['lint', '--no-logo', '--no-cache'])"
    result = run_python("-c", lint)
    assert result.returncode == 0, result.stdout
    assert "9 kept, 0 broken" in result.stdout
