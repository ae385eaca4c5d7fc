"""The documentation as a browser shows it: every page, in both themes, on a screen and a phone.

Needs Chromium (`apt-get install chromium`), which pip does not have: without it those tests are
skipped. `page_faults.js` says what is wrong with a page.
"""

import functools
import html.parser
import http.server
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest


ROOT = pathlib.Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")

ADDRESS = "https://example.org/eqdiff/"

pytestmark = pytest.mark.slow

FAULTS = (pathlib.Path(__file__).parent / "page_faults.js").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder and its address."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: MkDocs then counts no warnings, and --strict means nothing.
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder))
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "SITE_URL": ADDRESS}
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
    if CHROMIUM is None:
        pytest.skip("There is no Chromium.")
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


FAULTY = """<!DOCTYPE html><title>t</title><body style="margin: 0"><article>
<p style="width: 2000px">wide</p> <p style="overflow: hidden; width: 50px">VeryLongWordThatIsCut</p>
<div class="highlight"><nav class="md-code__nav" style="position: absolute; width: 3em">b</nav>
<pre><code>some code</code></pre></div> <h1 style="width: 2em; word-break: break-all">sampler</h1>
$x_1$ <a href="#nowhere">link</a> <img src="data:,"> <img alt="twin" src="data:,#only-light">
</article><div class="md-nav--secondary"><ul>ENTRIES</ul></div></body>"""


def test_the_faults_of_a_page_are_found(browser):
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_content(FAULTY.replace("ENTRIES", "<li>entry</li>" * 51))
    found = "\n".join(page.evaluate(FAULTS, True))
    for fault in (
        *("the page is 2000 wide", "P leaves the page", "P is cut: Very", "code lies under"),
        *('"sampler" is broken', "raw TeX: $x_1$", "no such place: #nowhere", "no picture"),
        *("without words", "without its twin", "more than 50"),
    ):
        assert fault in found, fault
    page.set_content("<body><article><p>Words, and <code>eqd.DDIM(50)</code>.</p></article></body>")
    assert page.evaluate(FAULTS, True) == []


class _Links(html.parser.HTMLParser):
    """The links of a page, and the places in it that others may link to."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.places, self.card = set(), set(), None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.places |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links |= {values[name] for name in ("href", "src") if values.get(name)}
        if values.get("property") == "og:image":
            self.card = values["content"]


def test_links_lead_somewhere(site):
    folder, _ = site
    pages = {p: _Links(p.read_text()) for p in folder.rglob("index.html")}
    faults = []
    for page, parsed in pages.items():
        for link in parsed.links:
            address = urllib.parse.urlsplit(link.removeprefix(ADDRESS))
            if address.scheme or address.netloc:
                continue
            base = folder if link.startswith(ADDRESS) else page.parent
            target = (base / urllib.parse.unquote(address.path)).resolve()
            target = target if address.path or base == folder else page
            target = target / "index.html" if target.is_dir() else target
            place = urllib.parse.unquote(address.fragment)
            known = pages[target].places if target in pages else {place}
            if not target.exists() or (place and place not in known):
                faults.append(f"{page.relative_to(folder)}: {link}")
    assert not faults, "\n".join(sorted(faults))


def test_a_link_to_a_page_shows_a_card(site):
    folder, _ = site
    for path in folder.rglob("index.html"):
        card = _Links(path.read_text()).card
        assert card is not None and card.startswith(ADDRESS), path
        header = (folder / card.removeprefix(ADDRESS)).read_bytes()[:24]
        assert header[:4] == b"\x89PNG"
        assert [int.from_bytes(header[i : i + 4], "big") for i in (16, 20)] == [1200, 630]


# What readers look for, and a page that must be among the first five of the answer.
SEARCHES = {
    "FID": "evaluate",
    "metrics": "api/metrics",
    "bits/dim": "likelihoods",
    "bits per dimension": "api/likelihood",
    "inpainting": "controllable",
    "EMA": "averages",
    "resume": "api/train",
    "TensorBoard": "training",
    "checkpoint": "api/train",
    "diffusers": "coming-from",
    "classifier-free guidance": "api/guidance",
    "CFG": "controllable",
    "multi-GPU": "devices",
    "bfloat16": "speed",
    "learning rate": "fine-tuning",
    "posterior": "inverse-problems",
    "optimal transport": "flow-matching",
    "fine-tune": "fine-tuning",
    "export": "export",
    "DDIM": "api/samplers",
    "DDPM": "reproduction",
    "DPM-Solver++": "choosing-a-sampler",
    "SDEdit": "controllable",
    "corrector": "api/samplers",
    "LowDiscrepancy": "api/losses",
    "cite": "citing",
}


def test_the_search_finds(site, browser):
    _, address = site
    tab = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    tab.goto(address)
    missed = []
    for words, page in SEARCHES.items():
        for text in ("", words):
            # The search listens to keys.
            tab.fill("input[name=query]", text)
            tab.press("input[name=query]", "End")
            tab.wait_for_function(
                "some => some === !!document.querySelector('.md-search-result__item')",
                arg=bool(text),
            )
        links = tab.locator(".md-search-result__item > a")
        found = [*dict.fromkeys(links.evaluate_all("a => a.map(b => b.pathname)"))]
        if f"/{page}/" not in found[:5]:
            missed.append(f"{words}: {found[:5]}")
    assert not missed, "\n".join(missed)
