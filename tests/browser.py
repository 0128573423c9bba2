"""JupyterLab, Voila and Chromium for the tests that look at a page, with no other host in reach."""

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

_CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-proxy-server",
    # No name but this host's resolves: what needs the network fails.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--window-size=1300,1600",
)
# Every cell is in the document, also far below the window, so that a test can look at it.
_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# Whether the kernel is idle, the code cells that have no number yet, and the first error.
_PROGRESS = """
const cells = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell")];
const state = document.querySelector(".jp-Notebook-ExecutionIndicator");
const kernel = document.querySelector(".jp-KernelName");
const error = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
return {
  // The indicator says "idle" also before there is a kernel.
  idle: state?.dataset.status === "idle" && (kernel?.innerText ?? "No Kernel") !== "No Kernel",
  cells: cells.length,
  waiting: cells.filter((cell) =>
    cell.querySelector(".cm-content").textContent.trim() &&
    !/^\\[\\d+\\]:$/.test(cell.querySelector(".jp-InputPrompt").textContent.trim())
  ).length,
  error: error ? error.innerText : null,
};
"""
# What JupyterLab draws anew between finding and using it is looked for again.
_REPLACED = (StaleElementReferenceException,)


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Serve a folder with JupyterLab and give the URL, token included.

    Args:
        folder: the folder with the notebooks.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name, values in _SETTINGS.items():
            file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(values))
        command = ["jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
        command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder.resolve()}"]
        command += [f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly"]
        with _serve(command, "ServerApp", home) as url:
            yield f"{url}/lab?token={token}"


@contextmanager
def voila(arguments: list[str]) -> Iterator[str]:
    """Show a notebook as a page and give the URL.

    Args:
        arguments: what Voila is told on its command line.
    """
    with tempfile.TemporaryDirectory() as home:
        with _serve(["voila", *arguments, "--no-browser"], "Voila", Path(home)) as url:
            yield url


@contextmanager
def _serve(command: list[str], app: str, home: Path) -> Iterator[str]:
    """Run a server, which keeps its own files in a folder, and give its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *command, f"--{app}.port={port}"]
    # Nothing of the user's own Jupyter is read or written.
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    env = os.environ | {key: str(home / place) for key, place in places.items()}
    log = home / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_for_server(server, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        # The server ends its kernels before it ends itself.
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for_server(
    server: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 90
) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            # Any answer will do.
            connection.request("GET", "/api/status")
            connection.getresponse()
            return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")


def notebook_url(server_url: str, name: str) -> str:
    """Give the URL that opens a notebook of a server.

    Args:
        server_url: what `jupyterlab` gave.
        name: path of the notebook below the served folder.
    """
    parts = urlsplit(server_url)
    return urlunsplit(parts._replace(path=f"/lab/tree/{quote(name)}"))


def end_kernels(server_url: str) -> None:
    """End the kernels of a server, as a restart of it does.

    Args:
        server_url: what `jupyterlab` gave.
    """
    parts = urlsplit(server_url)
    headers = {"Authorization": f"token {parts.query.removeprefix('token=')}"}

    def ask(method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        assert answer.status < 300, answer.reason
        body = answer.read()
        connection.close()
        return body

    for session in json.loads(ask("GET", "/api/sessions")):
        ask("DELETE", f"/api/sessions/{session['id']}")


@contextmanager
def chromium(wait: bool = True) -> Iterator[webdriver.Chrome]:
    """Start Debian's Chromium without a window and without names of other hosts.

    Args:
        wait: `get` waits until a page has come, for two minutes at most.
    """
    browser, driver_program = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver_program):
        raise RuntimeError(
            "chromium and chromedriver are not on the path; "
            "Debian has them as: apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.page_load_strategy = "normal" if wait else "none"
    for flag in _CHROMIUM_FLAGS:
        options.add_argument(flag)
    # The console and the requests of the page, for tests that ask what it did.
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_program))
    driver.set_script_timeout(180)
    try:
        yield driver
    finally:
        driver.quit()


def run_all_cells(driver: webdriver.Chrome, url_of_notebook: str, seconds: float = 600) -> None:
    """Open a notebook, run its cells through the menu and wait until all of them have run.

    Args:
        driver: the browser.
        url_of_notebook: what `notebook_url` gave.
        seconds: how long to wait for the kernel, and again for the cells.
    """
    driver.get(url_of_notebook)
    wait = WebDriverWait(driver, seconds, 0.5, _REPLACED)

    def ready(browser: webdriver.Chrome) -> bool:
        # A notebook that names no kernel makes JupyterLab ask; its proposal is the right one.
        for button in browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog .jp-mod-accept"):
            button.click()
        progress = _progress(browser)
        return progress["idle"] and progress["cells"] > 0

    wait.until(ready)
    _choose(driver, "Run", "runmenu:run-all")

    def done(browser: webdriver.Chrome) -> bool:
        progress = _progress(browser)
        if progress["error"]:
            raise AssertionError(f"a cell failed:\n{progress['error']}")
        return progress["idle"] and not progress["waiting"]

    wait.until(done)


def save(driver: webdriver.Chrome, seconds: float = 30) -> None:
    """Save the open notebook and wait until nothing is left to save.

    Args:
        driver: the browser.
        seconds: how long to wait.
    """
    _choose(driver, "File", "docmanager:save")
    dirty = ".lm-DockPanel-tabBar .lm-mod-current.jp-mod-dirty"
    WebDriverWait(driver, seconds).until(lambda d: not d.find_elements(By.CSS_SELECTOR, dirty))


def _progress(driver: webdriver.Chrome) -> dict:
    return driver.execute_script(_PROGRESS)


def _choose(driver: webdriver.Chrome, menu: str, command: str) -> None:
    """Choose a command from a menu of JupyterLab."""
    wait = WebDriverWait(driver, 30, ignored_exceptions=_REPLACED)

    def click(css: str, text: str = "") -> None:
        def clicked(browser: webdriver.Chrome) -> bool:
            for item in browser.find_elements(By.CSS_SELECTOR, css):
                if text in item.text and item.is_displayed():
                    item.click()
                    return True
            return False

        wait.until(clicked)

    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    click("#jp-MainMenu .lm-MenuBar-item", menu)
    click(f'.lm-Menu-item[data-command="{command}"]')
