"""Nothing here asks another machine for anything: neither in the tests, nor in programs, nor in what they import."""

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("dmrifit", "placement", "anomaly", "metastasis")
ROOT = Path(__file__).resolve().parents[2]
#: Modules whose only use is to reach other machines, or that fetch what they lack.
FETCHING = {
    *("socket", "ssl", "http", "ftplib", "smtplib", "poplib", "imaplib", "telnetlib", "xmlrpc", "webbrowser"),
    *("asyncio", "urllib.request", "urllib3", "requests", "httpx", "aiohttp", "pooch", "fsspec"),
    *("dipy.data", "sklearn.datasets", "monai.apps", "torch.hub", "torchvision", "distributed"),
}  # fmt: skip
#: Modules of commands that work on machines which the user names.
ASKED_FOR = {"dmrifit/cli/workers.py": {"distributed"}}
FETCHERS = {*("urlopen", "urlretrieve", "load_state_dict_from_url", "fetch_openml", "download_and_extract", "download_url")}


def tried_addresses(request):
    return next(one for one in request.session.config.pluginmanager.get_plugins() if hasattr(one, "REACHED")).REACHED


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_connection_to_another_machine_fails_the_test_that_makes_it(host, kind, request):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as one, pytest.raises(RuntimeError, match="nothing here may use the network"):
        one.connect((host, 80))
    with pytest.raises(RuntimeError, match="nothing here may use the network"):
        socket.getaddrinfo("example.invalid", 443)
    tried = tried_addresses(request)
    assert [event for event, _ in tried] == ["socket.connect", "socket.getaddrinfo"]
    tried.clear()


def imported(nodes):
    """Find what a module imports, anywhere in it, and what it gives to the function that imports by name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("import_optional", "import_module"):
            yield from (one.value for one in node.args[:1] if isinstance(one, ast.Constant))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_what_fetches(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = set(imported(nodes))
        parts = {".".join(name.split(".")[:n]) for name in names for n in (1, 2)}
        asked_for = ASKED_FOR.get(str(path.relative_to(ROOT)), set())
        assert not parts & FETCHING - asked_for, path
        assert not {node.attr for node in nodes if isinstance(node, ast.Attribute)} & FETCHERS, path


def test_nothing_that_is_shipped_refers_to_another_machine():
    words = ("fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "importScripts", "@import", "eval(")
    shipped = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".css", ".js", ".html")]
    assert shipped
    for path in shipped:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in words if word in text], path


WITHOUT = """
import sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        raise SystemExit(f"REACHED {event} {arguments[1:]}")

sys.addaudithook(forbid)
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_programs_start_without_looking_for_anything(package):
    code = f"{WITHOUT}from {package}.cli.program import main\nsys.argv = ['x', '--help']\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
