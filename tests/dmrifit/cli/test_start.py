"""Programs that are interrupted, also while they are loaded and after their work."""

import subprocess
import sys
import types

import pytest

#: A program that presses Ctrl-C itself, in places where Python prints or swallows the exception.
PROGRAM = """
import atexit, os, signal, sys, threading, time
from dmrifit.cli.start import run_program
def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100): pass
class Collected:
    def __del__(self): press()
def swallow():
    try: press()
    except BaseException: pass
def tidy():
    try: press()
    finally: press()
"""
PLACES = {
    "while a library is loaded": "swallow()\ndef main(): print('end')",
    "in the work": "def main(): press()",
    "in compiled code": "def main():\n try: press()\n except KeyboardInterrupt as stop: raise SystemError from stop",
    "where Python ignores it": "def main():\n x = Collected()\n del x\n print('end')",
    "twice": "def main(): tidy()",
    "while a thread is waited for": """
def later():
    time.sleep(0.5)
    press()
    time.sleep(10)
def main():
    threading.Thread(target=later).start()
    sys.exit(0)
""",
}


def run(tmp_path, program, handler="default_int_handler"):
    (tmp_path / "a_program.py").write_text(f"from start_of_it import *\n{program}\n")
    (tmp_path / "start_of_it.py").write_text(PROGRAM)
    # A shell that starts the tests in the background has switched Ctrl-C off.
    start = f"""
import signal, sys
from dmrifit.cli.start import run_program
signal.signal(signal.SIGINT, signal.{handler})
sys.path.insert(0, {str(tmp_path)!r})
run_program("a-program", "a_program")
"""
    return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", PLACES.values(), ids=PLACES)
def test_an_interrupt_is_one_line_wherever_it_comes(program, tmp_path):
    done = run(tmp_path, program)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "a-program: interrupted\n"


def test_an_interrupt_at_the_end_is_heeded_one_after_the_work_or_ignored_changes_nothing(tmp_path):
    done = run(tmp_path, "def main(): atexit.register(press); press()")
    assert done.returncode == 130
    assert done.stderr == 2 * "a-program: interrupted\n"
    done = run(tmp_path, "def main(): atexit.register(press); print('end')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    assert "SystemError: no interrupt" in run(tmp_path, "def main(): raise SystemError('no interrupt')").stderr
    done = run(tmp_path, "press()\ndef main(): press(); print('end')", "SIG_IGN")
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.parametrize("package", ["dmrifit.cli.start", "anomaly.cli", "metastasis.cli", "placement.cli"])
def test_every_program_begins_so(package, monkeypatch):
    calls = []
    program = types.SimpleNamespace(main=lambda: calls.append(package))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setitem(sys.modules, f"{package.split('.')[0]}.cli.program", program)
    __import__(package, fromlist=["main"]).main()
    assert calls == [package]


@pytest.mark.parametrize("package", ["dmrifit", "anomaly", "metastasis", "placement"])
def test_the_help_of_a_program_loads_no_large_library(package):
    code = f"import sys, {package}.cli.program; assert not {{'nibabel', 'scipy', 'numba', 'torch'}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)
