"""One headless Chromium and one local server for all checks of the built book."""

import http.server
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def html():
    """The folder of the built book: THESIS_BOOK, or the smoke build of `make test`."""
    folder = Path(os.environ.get("THESIS_BOOK", ROOT / "build/book/smoke/html"))
    assert (folder / "index.html").is_file(), f"no book in {folder}: run `make book`"
    return folder


@pytest.fixture(scope="session")
def pictures():
    """While it is clear, the server keeps pictures back, as a slow network does."""
    event = threading.Event()
    event.set()
    return event


@pytest.fixture(scope="session")
def server(html, pictures):
    """Address of a local server of the book that ends with the session."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path.endswith((".svg", ".png")):
                pictures.wait()
            super().do_GET()

        def log_message(self, *words):
            """Say nothing: the checks do."""

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(html))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium. Without one the checks do not run: an error under CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        reason = "no Chromium: BROWSER CHECKS NOT RUN (install chromium, run again)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()
