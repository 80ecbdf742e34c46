"""What every test shares: the reference data, figures without a screen, repeatable examples, no network."""

import ipaddress
import os
import socket
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports matplotlib; processes that tests start inherit it.
os.environ["MPLBACKEND"] = "Agg"

#: The fixture `tab`: a page in a browser.
pytest_plugins = ("browser",)

DATA_REQUIRED = os.environ.get("DMRIFIT_REQUIRE_DATA") == "1"

# Times vary between machines, so no example has a deadline. Where a run decides, it repeats the same
# examples; elsewhere hypothesis looks for new ones.
settings.register_profile("explore", deadline=None)
settings.register_profile("decide", deadline=None, derandomize=True)
settings.load_profile("decide" if DATA_REQUIRED or os.environ.get("CI") else "explore")


#: What this process tried to reach outside this machine.
REACHED = []


def forbid_network(event, arguments):
    """Refuse, as a hook of the interpreter, to look up or connect to other machines."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        family, address = arguments[0].family, arguments[1]
        inside = family not in (socket.AF_INET, socket.AF_INET6) or not address or is_here(address[0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        inside = is_here(arguments[0])
    else:
        return
    if not inside:
        REACHED.append((event, str(arguments[1:] if event.startswith("socket.connect") else arguments)))
        msg = f"{event} of {REACHED[-1][1]}: nothing here may use the network"
        raise RuntimeError(msg)


def is_here(host):
    """Tell whether an address is one of this machine; names are only looked up if they are its own."""
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", "<broadcast>", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


sys.addaudithook(forbid_network)


@pytest.fixture(autouse=True)
def no_network():
    """Fail where something tried to reach another machine, even if it went on without an answer."""
    yield
    tried = REACHED.copy()
    REACHED.clear()
    assert not tried


@pytest.fixture
def run_main(monkeypatch, capfd):
    """Give a function that runs a program in this process; it returns exit code, standard output and error."""

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capfd.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def run(run_main, request):
    """Give a function that runs the program of a test's package; it returns exit code, standard output and error."""
    package = request.path.relative_to(Path(__file__).parent).parts[0]
    main = import_module(f"{package}.cli.program").main
    return partial(run_main, main, "dmrifit" if package == "dmrifit" else f"dmrifit-{package}")


@pytest.fixture
def error_of(run):
    """Give a function that runs the program of a room, and returns the one line of error that it ends with."""

    def call(*words):
        code, _, error = run(*words)
        assert code == 2, error
        # Files that are taken without being named are told before.
        assert sum(": using " not in line for line in error.splitlines()) == 1, error
        return error

    return call


@pytest.fixture
def output_of(run):
    """Give a function that runs the program of a room without an error, and returns what it prints."""

    def call(*words):
        code, output, error = run(*words)
        assert code == 0, error
        return output

    return call


@pytest.fixture(scope="module")
def one_thread():
    """Compute on one thread, as the estimators do; threads that wait for a busy core take long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
