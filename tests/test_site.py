"""The documentation as a browser shows it: every page, in both themes, on a screen and a phone.

Needs Chromium (`apt-get install chromium`), which pip does not have: without it the tests are
skipped.
"""

import functools
import http.server
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest


ROOT = pathlib.Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium."),
]

# What is wrong with a page as it stands. Code, tables and formulas may scroll inside themselves on
# a phone; on a screen, code and the page as a whole must not.
FAULTS = r"""(screen) => {
  const width = document.documentElement.clientWidth, faults = [];
  if (document.documentElement.scrollWidth > width + 1)
    faults.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const code of document.querySelectorAll('article pre > code'))
    if (screen && code.scrollWidth > code.clientWidth + 1)
      faults.push('code is cut: ' + code.textContent.slice(0, 60));
  const text = document.body.cloneNode(true);
  for (const node of text.querySelectorAll('code, pre, script, style, annotation')) node.remove();
  for (const match of text.textContent.matchAll(/\\[a-zA-Z]{2,}|\\\(|\\\[|\$[^$\n]{1,40}\$/g))
    faults.push('raw TeX: ' + match[0]);
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    const id = decodeURIComponent(link.getAttribute('href').slice(1));
    if (id && !document.getElementById(id)) faults.push('no such place: #' + id);
  }
  for (const image of document.images)
    if (image.complete && !image.naturalWidth) faults.push('no picture: ' + image.src);
  return faults;
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder and its address."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: MkDocs then counts no warnings, and --strict means nothing.
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder))
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=600)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(
        ("localhost", 0), functools.partial(quiet, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_every_page_is_whole(site, browser, width, scheme):
    folder, address = site
    size = {"width": width, "height": 900}
    page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
    errors, faults = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    for index in sorted(folder.rglob("index.html")):
        path = index.parent.relative_to(folder)
        page.goto(f"{address}/{path}/")
        found = [*page.evaluate(FAULTS, width > 1000), *errors]
        faults += [f"{path}: {fault}" for fault in dict.fromkeys(found)]
        errors.clear()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("words", "page"), [("FID", "evaluate"), ("bits per dimension", "faq"), ("inpainting", "contr")]
)
def test_the_search_finds(site, browser, words, page):
    _, address = site
    tab = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    tab.goto(address)
    tab.fill("input[name=query]", words)
    tab.wait_for_selector(".md-search-result__link")
    links = tab.locator(".md-search-result__link").evaluate_all("a => a.map(b => b.href)")
    assert any(page in link for link in links[:5]), links
