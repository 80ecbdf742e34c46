# `make demo` and `make test`; `make help` lists the rest.
# Each makes the environment .venv on first use and brings it up to date when the pins change.
#   PYTHON       the interpreter that .venv is made with, for example PYTHON=python3.12
#   PIP_ARGS     more arguments for pip install, for example another package index
#   PYTEST_ARGS  more arguments for pytest, for example PYTEST_ARGS="-k protocol"

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
# Tests of a file share what it prepares, so they stay in one process. Files come in the order of their folders; in that
# of their numbers of tests, the longest would come last, and one process would wait for it.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
# Tests of commands start Python hundreds of times, which reads compiled modules faster.
unexport PYTHONDONTWRITEBYTECODE

# .venv keeps the Python it was made with unless PYTHON asks for another by name.
ifeq ($(origin PYTHON),file)
ASKED :=
else
ASKED := yes
endif
export PYTHON ASKED PIP_ARGS

help:
	@echo "make demo        fit a real diffusion scan and compare strategies and algorithms; build/demo holds the results"
	@echo "make test        all tests except the slow ones, with lint, types and docstrings"
	@echo "make test-slow   the slow tests"
	@echo "make faults      all faulty inputs of tests/faults, spoiled model files, large input, commands killed at fifty moments (hours)"
	@echo "make audit       what the project depends on: newer versions, pins, licenses, known advisories where pip-audit is installed"
	@echo "make docs        the documentation, in build/docs/html"
	@echo "make wheels      build the wheel, install it into clean environments and try it, alone and with each extra"
	@echo "make clean       remove what the commands above made, except .venv"
	@echo "make clean-all   remove .venv too"

demo: environment-demo
	@scan=$$(.venv/bin/python -c "$$SCAN") && set -x && \
	.venv/bin/python -m dmrifit fit "$$scan.nii.gz" --bval "$$scan.bval" --bvec "$$scan.bvec" \
	    --out build/demo/fit --overwrite
	.venv/bin/python examples/plot_own_scan.py
	.venv/bin/python examples/plot_compare_algorithms.py

test: environment-test
	.venv/bin/python -m pytest -m "not slow" $(WORKERS) $(PYTEST_ARGS)

# pytest ends with 5 when nothing was selected: no failure while no test is slow.
test-slow: environment-test
	.venv/bin/python -m pytest -m slow $(WORKERS) $(PYTEST_ARGS) || [ $$? -eq 5 ]

faults: environment-test
	.venv/bin/python tests/faults/run_corpus.py --store
	.venv/bin/python tests/faults/fuzz_models.py
	.venv/bin/python tests/faults/run_machine.py --store
	.venv/bin/python tests/faults/run_scale.py --store
	.venv/bin/python tests/faults/run_kills.py --store
	DMRIFIT_FAULTS=all .venv/bin/python -m pytest tests/faults/test_determinism.py -k without_vectors

audit: environment-test
	.venv/bin/python -m pip list --outdated
	.venv/bin/python -m pytest -q tests/security/test_dependencies.py
	! command -v pip-audit || pip-audit --no-deps -r constraints.txt

docs: environment-test
	.venv/bin/python examples/docs/build.py

environment-demo:
	@sh -c "$$ENVIRONMENT" make demo ".[report,preprocess,boost,stats]"

environment-test:
	@sh -c "$$ENVIRONMENT" make test ".[all,test]"

# WHEEL_ARGS, for example "--python python3.12 --extra report"; see tests/wheels/check_wheel.py --help.
wheels: environment-test
	.venv/bin/python tests/wheels/check_wheel.py --pip-args "$(PIP_ARGS)" $(WHEEL_ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

clean-all: clean
	rm -rf .venv

.PHONY: help demo test test-slow faults audit wheels docs environment-demo environment-test clean clean-all
.NOTPARALLEL:

# Called with the level (demo or test) and what pip installs for it. The stamp made-for-* is named by
# what the environment was made from. It comes last, from `unfinished`: where that file is still there,
# pip was interrupted, and as half-installed packages cannot be told from whole ones, .venv is made again.
# Where pip failed by itself, without a network for example, what was there before is whole and stays.
define ENVIRONMENT
set -eu
level=$$1
target=$$2
check() {
    command -v "$$PYTHON" >/dev/null || {
        echo "There is no $$PYTHON here. Name an installed Python 3.11 to 3.14: make $$level PYTHON=python3.12" >&2
        exit 1
    }
    "$$PYTHON" -c "$$CHECK" "$$level"
}
version() { "$$1" -c "import sys; print('%d.%d.%d' % sys.version_info[:3])" 2>/dev/null || echo none; }
renew() {
    check
    echo "The environment .venv $$1; it is made again."
    rm -rf .venv
}
if [ -e .venv ]; then
    if [ -e .venv/unfinished ] || ! ls .venv/made-for-* >/dev/null 2>&1; then
        renew "was not finished"
    elif [ "$$(version .venv/bin/python)" = none ]; then
        renew "has lost its Python"
    elif [ -n "$$ASKED" ] && [ "$$(version .venv/bin/python)" != "$$(version "$$PYTHON")" ]; then
        renew "has Python $$(version .venv/bin/python), not that of $$PYTHON"
    fi
fi
if [ ! -e .venv ]; then
    check
    "$$PYTHON" -m venv .venv
fi
key=$$(.venv/bin/python -c "$$KEY")
if [ -e ".venv/made-for-$$level-$$key" ] || [ -e ".venv/made-for-test-$$key" ]; then
    exit 0
fi
echo "Installing what make $$level needs into .venv; the first time takes some minutes."
trap 'exit 130' INT TERM
date > .venv/unfinished
.venv/bin/python -m pip install --disable-pip-version-check $$PIP_ARGS -c constraints.txt -e "$$target" || {
    status=$$?
    rm .venv/unfinished
    exit $$status
}
rm -f .venv/made-for-*
mv .venv/unfinished ".venv/made-for-$$level-$$key"
[ "$$level" = test ] || .venv/bin/python -c "$$COMPILE" || true
endef
export ENVIRONMENT

# The first fit of a model on a machine compiles it; what is compiled stays in the user's cache.
define COMPILE
import numpy as np
from dmrifit import MODELS, Protocol, fit_voxels
print("Compiling the included models, once on this machine.", flush=True)
b, te = np.ravel(np.meshgrid([0, 20, 50, 100, 200, 400, 800, 1200, 2000], [60, 80, 100])).reshape(2, -1)
signals = [100 * np.exp(-1.2e-3 * b - te / 80)]
for name, model in MODELS.items():
    protocol = Protocol(0 * b if name == "t2" else b, te if model.needs_te else None)
    fit_voxels(signals, protocol, name).intervals()
endef
export COMPILE

# Any Python can read these lines, also those that are refused.
define CHECK
import sys
level, found = sys.argv[1], "%d.%d" % sys.version_info[:2]
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit("Python 3.11 to 3.14 is needed and %s is %s. Name another: make %s PYTHON=python3.12" % (sys.executable, found, level))
import importlib.util
missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("%s lacks %s. On Debian and Ubuntu: sudo apt install python%s-venv. Or name another Python: make %s PYTHON=python3.12" % (sys.executable, " and ".join(missing), found, level))
endef
export CHECK

# The folder is part of the key because the editable installation points to it.
define KEY
import hashlib, os, pathlib, sys
parts = [pathlib.Path(name).read_bytes() for name in ("constraints.txt", "setup.cfg")]
parts += [sys.version.encode(), os.fsencode(os.getcwd())]
print(hashlib.sha256(b"|".join(parts)).hexdigest()[:16])
endef
export KEY

# The diffusion scan that the installed dipy carries, without its extensions.
define SCAN
from importlib.resources import files
print(files("dipy") / "data" / "files" / "small_101D")
endef
export SCAN
