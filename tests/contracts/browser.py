"""Pages in a real browser: Debian's Chromium, driven by playwright through pipes, which no other machine can reach."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALL = "apt-get install -y --no-install-recommends chromium"
#: Beginnings of addresses that a page may ask for: itself, and what it holds.
INSIDE = ("file:", "data:", "blob:", "about:")
WIDTHS = (390, 1120, 1400)

_IS_READY = "() => [...document.querySelectorAll('.viewer')].every((viewer) => viewer.dataset.state)"


@pytest.fixture(scope="module")
def chromium():
    """One browser for the tests of a file; its loop of events would be in the way of tests that have their own."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"no Chromium is on the PATH ({', '.join(NAMES)}); on Debian: {INSTALL}"
        if os.environ.get("DMRIFIT_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """An empty tab; the test fails where its page complained, or asked for something that is not in it."""
    with chromium.new_context(offline=True) as context:
        opened = Tab(context.new_page())
        yield opened
    assert opened.complaints == []
    assert opened.asked_outside() == []


class Tab:
    """One tab, and everything that its pages complained of or asked for."""

    def __init__(self, page):
        self.page = page
        self.complaints, self.requests = [], []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path, width=1400, height=900, *, dark=False):
        """Load a page from a file, wait until its viewers are ready, and return it as playwright knows it."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.goto(path.resolve().as_uri())
        self.wait_until(_IS_READY)
        return self.page

    def wait_until(self, condition):
        """Wait until a condition in JavaScript holds; playwright's own way is code that the pages forbid."""
        for _ in range(1500):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(20)
        pytest.fail(f"not after half a minute: {condition}")

    def asked_outside(self):
        """List what was asked for beyond files and what pages hold."""
        return [address for address in self.requests if not address.startswith(INSIDE)]

    def size(self):
        """Width and height of all of the page in pixels; wider than the window, it has to be scrolled sideways."""
        return tuple(self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"))

    def open_at_every_width(self, path):
        """Check that a page is nowhere wider than its window, whatever is unfolded, and open it at the largest width."""
        for width in WIDTHS:
            page = self.open(path, width, 1000)
            page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
            assert self.size()[0] == width
            wide = "[...document.querySelectorAll('.scroll')].filter((part) => part.scrollWidth > part.clientWidth + 1)"
            assert page.evaluate(f"{wide}.map((part) => part.innerText)") == []
        return self.open(path, WIDTHS[-1], 1000)

    def is_on_first_screen(self, locator):
        """Tell whether an element is seen without scrolling."""
        box = locator.bounding_box()
        window = self.page.viewport_size
        if box is None or not (box["width"] and box["height"]):
            return False
        sides = (("x", "width"), ("y", "height"))
        return all(box[start] >= 0 and box[start] + box[side] <= window[side] + 1 for start, side in sides)
