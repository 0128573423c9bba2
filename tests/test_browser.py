"""A real JupyterLab in a real browser, with no network: the notebooks as a reader meets them."""

import re
import shlex
import shutil
from pathlib import Path

import nbformat
import pytest
from browser import chromium, end_kernels, jupyterlab, notebook_url, run_all_cells, save, voila
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from patchlib import notebooks
from patchlib.notebooks import NOTEBOOKS

MAKEFILE = (NOTEBOOKS.parent / "Makefile").read_text(encoding="utf-8")

pytestmark = pytest.mark.browser


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a copy of the notebooks, and a browser that finds no other host."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(path, tmp_path)
    with jupyterlab(Path(tmp_path)) as url, chromium() as driver:
        yield url, driver


# The pictures of the widget with a dropdown of this label, all read at one moment: a page replaces
# a picture's element when the kernel changes it, and one that was found before is gone.
_PICTURES = """
const label = [...document.querySelectorAll(".widget-dropdown .widget-label")]
  .find((label) => label.textContent === arguments[0]);
const pictures = label?.closest(".widget-vbox").querySelectorAll("img") ?? [];
return [...pictures].map((picture) => picture.src);
"""

# Which pictures of the widgets are seen.
_VISIBLE = """
const pictures = [...document.querySelectorAll(".widget-vbox img")];
return pictures.map((picture) => picture.getClientRects().length > 0);
"""

# Whether nothing of them is cut off at the right.
_FIT = """
const pictures = [...document.querySelectorAll(".widget-vbox img")];
return pictures.every((picture) => picture.getBoundingClientRect().right <= innerWidth);
"""


def _choice(driver, label):
    def find(browser):
        for control in browser.find_elements(By.CSS_SELECTOR, ".widget-dropdown"):
            if control.find_element(By.CSS_SELECTOR, ".widget-label").text == label:
                return Select(control.find_element(By.TAG_NAME, "select"))
        return None

    return WebDriverWait(driver, 60).until(find)


def _pictures(driver, label, number, condition):
    """Wait until a widget shows so many pictures and they meet the condition, and give them."""

    def shown(browser):
        pictures = browser.execute_script(_PICTURES, label)
        return len(pictures) == number and condition(pictures) and pictures

    return WebDriverWait(driver, 600).until(shown)


def test_start_notebook_runs_and_its_widget_changes_the_picture(lab):
    url, driver = lab
    run_all_cells(driver, notebook_url(url, "00_start_here.ipynb"))
    effects, attention = _pictures(driver, "metric", 2, all)
    metric = _choice(driver, "metric")
    assert metric.first_selected_option.text == "logit_diff"
    metric.select_by_visible_text("prob")
    other, same = _pictures(driver, "metric", 2, lambda now: now[0] != effects)
    assert other.startswith("data:image/png;base64,")
    assert same == attention
    metric.select_by_visible_text("logit_diff")
    _pictures(driver, "metric", 2, lambda now: now == [effects, attention])


def test_the_widget_of_choices_shows_another_picture_for_another_choice(lab):
    url, driver = lab
    run_all_cells(driver, notebook_url(url, "06_recommendations.ipynb"))
    before = _pictures(driver, "change", 1, all)
    change = _choice(driver, "change")
    first = change.first_selected_option.text
    change.select_by_visible_text("corruption: STR → GN")
    (after,) = _pictures(driver, "change", 1, lambda now: now != before)
    assert after.startswith("data:image/png;base64,")
    change.select_by_visible_text(first)
    _pictures(driver, "change", 1, lambda now: now == before)


def test_circuitsvis_plot_is_drawn_without_a_network(lab):
    url, driver = lab
    run_all_cells(driver, notebook_url(url, "03_2_out_of_distribution.ipynb"))
    painted = """
        const canvases = [...document.querySelectorAll(".patchlib-attention-heads canvas")];
        return canvases.map((canvas) => {
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return new Set(new Uint32Array(pixels.data.buffer)).size;
        });
    """
    colours = WebDriverWait(driver, 60).until(
        lambda d: (counts := d.execute_script(painted)) and min(counts) > 1 and counts
    )
    # One small canvas for each of clean, STR and GN, and the large one.
    assert len(colours) == 4


_NOTEBOOK = """
import torch
import patchlib as pl
from patchlib.show import explorer as explorer_module
explorer_module._SECONDS_AT_ONCE = 0
model = pl.load_model("mini")
pairs = pl.tasks.ioi(model, n=8)
# %%
pl.explore(model, pairs)
# %%
pl.AttentionHeads(torch.eye(3)[None], ["a", "b", "c"], ["0.1"])
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook with the widgets, as `patchlib.notebooks.run` leaves it; and its page."""
    cells = [nbformat.v4.new_code_cell(code.strip()) for code in _NOTEBOOK.split("# %%")]
    path = tmp_path_factory.mktemp("widgets") / "widgets.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "BUILD", path.parent)
        notebooks.run(path, write=True)
    return path


def test_a_saved_notebook_shows_settings_and_pictures_before_it_runs(executed):
    with jupyterlab(executed.parent) as url, chromium() as driver:
        driver.get(notebook_url(url, executed.name))
        cells = WebDriverWait(driver, 90).until(
            lambda d: (
                len(d.find_elements(By.CSS_SELECTOR, ".jp-OutputArea img")) == 3
                and d.find_elements(By.CSS_SELECTOR, ".jp-CodeCell .jp-Cell-outputArea")
            )
        )
        text = " ".join(cell.text for cell in cells)
        assert "Settings of pl.explore" in text and "logit_diff" in text
        assert "rror" not in text and "Loading" not in text
        assert all(
            image.is_displayed()
            for image in driver.find_elements(By.CSS_SELECTOR, ".jp-OutputArea img")
        )
        run_all_cells(driver, notebook_url(url, executed.name))
        _use_the_map(driver)
        before = _pictures(driver, "metric", 2, all)
        _choice(driver, "at").select_by_visible_text("S1+IO")
        compute = By.XPATH, "//button[contains(., 'compute: ')]"
        WebDriverWait(driver, 90).until(lambda d: d.find_element(*compute)).click()
        _pictures(driver, "metric", 2, lambda now: now[0] != before[0])


def test_the_dashboard_of_voila_follows_its_controls():
    recipe = re.search(r"^dashboard:.*\n.*\n\t\$\(BIN\)/voila (.*\\\n.*)$", MAKEFILE, re.MULTILINE)
    arguments = shlex.split(recipe[1].replace("\\\n", ""))
    # Voila's page has come once the notebook has run, which may take longer than `get` waits.
    with voila(arguments) as url, chromium(wait=False) as driver:
        driver.get(url)
        before = _pictures(driver, "metric", 2, all)
        _choice(driver, "metric").select_by_visible_text("prob")
        _pictures(driver, "metric", 2, lambda now: now[0] != before[0] and now[1] == before[1])
        _choice(driver, "metric").select_by_visible_text("logit_diff")
        _pictures(driver, "metric", 2, lambda now: now == before)
        _use_the_map(driver)
        # A curve is a picture alone.
        _choice(driver, "component").select_by_visible_text("mlp")
        WebDriverWait(driver, 180).until(lambda d: d.execute_script(_VISIBLE) == [True, True])
        assert not driver.find_element(By.CSS_SELECTOR, ".patchlib-map").is_displayed()
        driver.set_window_size(600, 1600)
        WebDriverWait(driver, 30).until(lambda d: d.execute_script(_FIT))


_SEEN = """
const seen = (element) => element.getClientRects().length > 0;
const area = [...document.querySelectorAll(".jp-CodeCell .jp-Cell-outputArea")];
return {
  text: area.map((cell) => cell.innerText).join(" "),
  dead: [...document.querySelectorAll(".jp-OutputArea-output.lm-Panel")]
    .filter((output) => /widget/.test(output.textContent)).length,
  widgets: [...document.querySelectorAll(".patchlib-live")].filter(seen).length,
  tables: [...document.querySelectorAll(".patchlib-stand-in table")].filter(seen).length,
  pictures: [...document.querySelectorAll(".jp-OutputArea img")].filter(seen)
    .map((image) => image.alt.split(/[ :,]/)[0]),
};
"""


@pytest.mark.parametrize("trusted", [True, False])
def test_a_notebook_that_a_reader_saves_shows_pictures_in_place_of_widgets(executed, trusted):
    """On a page without a kernel, also where another reader opens it, who does not trust it."""
    name = f"reader_{trusted}.ipynb"
    path = executed.with_name(name)
    shutil.copy(executed, path)
    with jupyterlab(executed.parent) as url, chromium() as driver:
        run_all_cells(driver, notebook_url(url, name))
        live = _seen(driver, lambda now: now["widgets"] == 2 and len(now["pictures"]) == 1)
        assert live["tables"] == 0
        before = _pictures(driver, "metric", 2, all)
        _choice(driver, "metric").select_by_visible_text("prob")
        _pictures(driver, "metric", 2, lambda now: now[0] != before[0])
        save(driver)
        end_kernels(url)
        if not trusted:
            # The server signed what it saved.
            notebook = nbformat.read(path, as_version=4)
            notebook.cells[0].source += "\n# Read by somebody else."
            nbformat.write(notebook, path)
        driver.get(notebook_url(url, name))
        saved = _seen(driver, lambda now: now["tables"] == 1 and len(now["pictures"]) == 3)
        # Only a trusted page looks for its widgets, and says that there are none.
        assert (saved["widgets"], saved["dead"]) == (0, 2 * trusted)
        assert saved["pictures"] == ["Heat", "Attention", "Attention"]
        assert "Settings of pl.explore" in saved["text"] and "\tprob" in saved["text"]
        assert "rror" not in saved["text"] and "Loading" not in saved["text"]


def _seen(driver, condition):
    """Wait until what is seen of the outputs meets the condition, and give it."""

    def seen(browser):
        now = browser.execute_script(_SEEN)
        return condition(now) and now

    return WebDriverWait(driver, 90).until(seen)


def _use_the_map(driver):
    """Point, click and type."""
    wait = WebDriverWait(driver, 90)
    cell = wait.until(
        lambda d: d.find_element(By.CSS_SELECTOR, '.patchlib-map rect[data-cell="4,6"]')
    )
    # The map is not seen twice.
    assert driver.execute_script(_VISIBLE) == [False, True]
    reading = driver.find_element(By.CSS_SELECTOR, ".patchlib-map .patchlib-read")
    before = _pictures(driver, "metric", 2, all)
    ActionChains(driver).move_to_element(cell).perform()
    assert re.match(r"layer 4, head 6: 0\.\d+, 95 % interval 0\.\d+ to 0\.\d+ ·", reading.text)
    assert reading.text.startswith(cell.get_attribute("aria-label"))
    driver.execute_script("arguments[0].focus()", cell)
    ActionChains(driver).send_keys(Keys.ARROW_UP, Keys.ARROW_LEFT).perform()
    assert reading.text.startswith("layer 3, head 5: ")
    focus = driver.switch_to.active_element
    assert focus.aria_role == "gridcell" and focus.accessible_name in reading.text
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    head = _choice(driver, "head")
    wait.until(lambda d: head.first_selected_option.text.startswith("3.5"))
    _pictures(driver, "metric", 2, lambda now: now[1] != before[1] and now[0] == before[0])
    ActionChains(driver).move_to_element(cell).click().perform()
    wait.until(lambda d: head.first_selected_option.text.startswith("4.6"))
