"""A browser without a window, driven through its pipe for developers: no driver, no further package."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60  # seconds that an answer may take on a busy machine

# Chromium reads from 3 and writes to 4, whatever numbers the pipes have here.
_START = (
    "import fcntl, os, sys\n"
    "ends = [fcntl.fcntl(int(text), fcntl.F_DUPFD, 10) for text in sys.argv[1:3]]\n"
    "for end, number in zip(ends, (3, 4)): os.dup2(end, number)\n"
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def chromium():
    """The path of Chromium; the test is skipped where there is none, because nothing else can render a page."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium is on the PATH ({', '.join(NAMES)}), and nothing else here renders a page")
    return found


class Browser:
    """One tab, and everything that it complained of or asked for."""

    def __init__(self, read, write):
        self._read, self._write, self._buffer = read, write, b""
        self._numbers = itertools.count(1)
        self.session = None
        self.complaints, self.requests, self.loaded = [], [], 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path, width=1100, height=900):
        """Load a page and wait until its viewers are ready."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        before = self.loaded
        self.call("Page.navigate", url=path.resolve().as_uri())
        while self.loaded == before:
            self._next()
        self.value(
            "(async () => { while ([...document.querySelectorAll('.viewer')].some((one) => !one.dataset.state))"
            " await new Promise((done) => setTimeout(done, 10)); })()"
        )

    def value(self, expression):
        """The value of JavaScript, awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key, code):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def _next(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._notice(message.get("method"), message.get("params", {}))
        return message

    def _notice(self, method, parameters):
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(parameters)
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded += 1


@contextmanager
def browser(folder):
    """Start Chromium with a profile of its own, and end it."""
    command = chromium()
    theirs, write = os.pipe()
    read, answers = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}",
               "--no-first-run", "--disable-extensions", "--disable-background-networking"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(theirs), str(answers), command, *options],
        pass_fds=(theirs, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(answers)
    try:
        tab = Browser(read, write)
        yield tab
        tab.session = None
        tab.call("Browser.close")
    finally:
        os.close(write)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(read)
