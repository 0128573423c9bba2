"""The web site as it is built: every page and link, and nothing that asks for another host."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium
from filelock import FileLock
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import patchlib as pl

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def site(tmp_path_factory, request):
    """The site, built once for all processes of a test run; a warning of the build is an error."""
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        base = base.parent
    folder = base / "site"
    with FileLock(base / "site.lock"):
        if not folder.exists():
            options = ["-q", "-W", "--keep-going", "-c", "site", "-d", base / "doctrees"]
            command = [sys.executable, "-m", "sphinx", *options, ".", folder]
            built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert built.returncode == 0, built.stderr
    return folder


class _Page(HTMLParser):
    """What a page names: its anchors, its links, what it loads, and its pictures' texts."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded, self.texts = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "img":
            self.texts.append(given.get("alt"))
        if tag == "a":
            self.links.append(given.get("href", ""))
        self.loaded += [given[key] for key in ("src", "srcset", "data", "poster") if given.get(key)]
        if tag == "link":
            self.loaded.append(given["href"])


@pytest.fixture(scope="session")
def pages(site):
    return {path.resolve(): _Page(path) for path in site.rglob("*.html")}


def _is_outside(address):
    return bool(urlsplit(address).netloc)


def test_every_notebook_is_a_page(site, pages):
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names <= {path.stem for path in (site / "notebooks").glob("*.html")}
    assert (site / "index.html").resolve() in pages


def test_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {""}
            if not target.is_file() or unquote(parts.fragment) not in anchors | {""}:
                broken.append((path.name, link))
    assert broken == []


def test_links_name_a_notebook_s_heading_as_jupyterlab_does(site, pages):
    links = pages[(site / "notebooks" / "using_patchlib.html").resolve()].links
    assert "notation_and_settings.html#what-a-result-says-about-itself" in links


def test_nothing_is_loaded_from_another_host(site, pages):
    assert [each for page in pages.values() for each in page.loaded if _is_outside(each)] == []
    sheets = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", sheets) == []


def test_figures_have_a_text(pages):
    texts = [text for page in pages.values() for text in page.texts]
    assert len(texts) > 50 and all(texts)


def test_formulas_are_mathml(site):
    text = (site / "notebooks" / "20_attribution_patching.html").read_text(encoding="utf-8")
    assert "<math" in text and "\\partial" not in text


def test_the_reference_has_every_public_name(site, pages):
    anchors = pages[(site / "site" / "reference.html").resolve()].anchors
    public = {name: getattr(pl, name) for name in pl.__all__}
    missing = []
    for name, what in public.items():
        module = getattr(what, "__path__", None) or getattr(what, "__file__", None)
        anchor = f"module-{what.__name__}" if module else f"patchlib.{name}"
        missing += [name] if anchor not in anchors else []
    assert missing == []


@pytest.fixture(scope="module")
def driver():
    with chromium() as driver:
        yield driver


def _size(driver, width, height):
    """As a phone's browser has it; a window of a desktop cannot be as narrow."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.browser
def test_every_page_loads_from_disk_alone_and_fits_a_phone(site, pages, driver):
    _size(driver, 390, 844)
    for path in pages:
        # What is left in the logs is another page's.
        driver.get_log("performance")
        driver.get_log("browser")
        driver.get(path.as_uri())
        events = [
            json.loads(entry["message"])["message"] for entry in driver.get_log("performance")
        ]
        asked = {
            event["params"]["request"]["url"].split(":")[0]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert asked <= {"file", "data"}, path.name
        assert driver.get_log("browser") == [], path.name
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390, (
            path.name
        )


@pytest.mark.browser
def test_search_finds_name_movers(site, driver):
    driver.get((site / "search.html").as_uri() + "?q=Name+Mover")
    # Results are listed one after the other.
    WebDriverWait(driver, 30).until(
        lambda d: d.find_elements(By.CSS_SELECTOR, ".search li a[href*='03_1_ioi_circuit.html']")
    )


@pytest.mark.browser
def test_figures_stay_on_white_where_the_page_is_dark(site, driver):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    driver.get((site / "notebooks" / "03_1_ioi_circuit.html").as_uri())
    page, *figures = driver.execute_script(
        "return [document.body, ...document.querySelectorAll('.cell_output img')]"
        ".map((element) => getComputedStyle(element).backgroundColor)"
    )
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert max(map(int, re.findall(r"\d+", page)[:3])) < 64
    assert figures and set(figures) == {"rgb(255, 255, 255)"}


@pytest.mark.browser
def test_claims_can_be_filtered(site, driver):
    _size(driver, 1300, 1600)
    driver.get((site / "notebooks" / "replication.html").as_uri())
    field = driver.find_element(By.CSS_SELECTOR, "input.filter")
    table = field.find_element(By.XPATH, "following-sibling::table")
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(rows) > 50
    field.send_keys("logit peak")
    shown = [row.text for row in rows if row.is_displayed()]
    assert 0 < len(shown) < len(rows)
    assert all("logit" in text.lower() and "peak" in text.lower() for text in shown)
