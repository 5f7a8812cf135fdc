"""The pages in a browser: drawn whole, without a complaint, at every width, with tables that sort; and on paper."""

import base64
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from study_records import made_up, results_of

from pyro_vae.cli import main
from pyro_vae.report import write_report
from pyro_vae.study.words import words

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="no Chromium (on Debian: apt-get install chromium chromium-driver)"
    ),
]
webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium (pip install selenium)")

# To look at: a folder for pictures of the pages.
SCREENSHOTS = os.environ.get("REPORT_SCREENSHOTS")
PHONE, DESKTOP = 390, 1280


def study_in(folder):
    """Two priors, three families, two kinds of likelihood, three seeds; something is wrong with some of it."""
    generator = torch.Generator().manual_seed(0)
    priors = ["standard-normal", "laplace", {"part": "gaussian-mixture", "num_components": 20}]
    axes = {"prior": priors, "likelihood": ["binomial", "gaussian-shared-scale"], "seed": [0, 1, 2]}
    hard = 60 * torch.rand(40, generator=generator).double()
    cells = {}
    for prior, likelihood, seed in itertools.product(*axes.values()):
        if (words(prior), likelihood, seed) == ("laplace", "binomial", 1):
            continue
        gain = 0.4 * priors.index(prior) + 0.3 * torch.randn(1, generator=generator).double()
        log_p = -80 - hard + gain + 0.2 * torch.randn(40, generator=generator).double()
        k = 0.9 * torch.rand(40, generator=generator).double()
        gap = 1 + torch.rand(40, generator=generator).double()
        gaps = made_up(log_p, se=0.05, pareto_k=k, amortization_gap=gap, converged=k < 0.85)
        measure = "counting" if likelihood == "binomial" else "lebesgue"
        cells[words(prior), likelihood, seed] = gaps, {"base_measure": measure}
    failure = {
        "place": {"prior": "laplace", "likelihood": "binomial", "seed": "1"},
        "error": "FloatingPointError: step 31: the loss is not finite. Lower the step size (training.optimizer.lr).",
        "traceback": "Traceback (most recent call last):\n" + 8 * "  a line of code that goes on and on\n",
    }
    return results_of(axes, cells, folder=folder, failures=[failure], num_open=1)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("runs")
    small = ["--training.epochs=2", "--num-latents=2", "decoder:mlp", "--decoder.hidden=16"]
    assert main(["fit", f"--out={folder / 'run'}", *small]) == 0
    assert main(["gaps", str(folder / "run"), "--num-data=40"]) == 0
    (folder / "study").mkdir()
    return {"run": write_report(folder / "run"), "study": write_report(study_in(folder / "study"))}


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver is named, so that nothing is looked for in the network.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def show(browser, page, width, *, dark=False):
    """Open a page at this width, in CSS pixels, in light or dark, with a console that has said nothing yet."""
    browser.get("about:blank")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get_log("browser")
    browser.get(Path(page).as_uri())
    assert browser.execute_script("return innerWidth") == width


def overflow(browser):
    """How far the document reaches beyond the window, and what does."""
    return browser.execute_script(
        """const parts = [...document.querySelectorAll("body *")].filter(part => !part.closest(".scroll, details"));
        const beyond = parts.filter(part => part.getBoundingClientRect().right > innerWidth + 1);
        return [document.documentElement.scrollWidth - innerWidth, beyond.map(part => part.tagName)];"""
    )


def images(browser):
    return browser.execute_script(
        """return [...document.images].map(image =>
        [image.complete && image.naturalWidth > 0, image.getBoundingClientRect().width]);"""
    )


def brightness(browser):
    """Of ink and of paper, from 0 to 1."""
    colors = browser.execute_script(
        """const style = getComputedStyle(document.body);
        return [style.color, style.backgroundColor].map(color => color.match(/[\\d.]+/g).slice(0, 3).map(Number));"""
    )
    return [sum(color) / 765 for color in colors]


def keep(browser, name):
    if SCREENSHOTS:
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
        (Path(SCREENSHOTS) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("kind", ["run", "study"])
def test_the_page_is_whole(browser, reports, kind, width, dark):
    show(browser, reports[kind], width, dark=dark)
    assert browser.get_log("browser") == []
    drawn = images(browser)
    assert len(drawn) >= (8 if kind == "run" else 1)
    assert all(complete and 100 < shown <= width for complete, shown in drawn)
    assert overflow(browser) == [0, []]
    ink, paper = brightness(browser)
    assert (ink > 0.8 and paper < 0.2) if dark else (ink < 0.2 and paper > 0.8)
    keep(browser, f"{kind}-{width}-{'dark' if dark else 'light'}")


@pytest.mark.parametrize("kind", ["run", "study"])
def test_tables_sort_by_every_column(browser, reports, kind):
    show(browser, reports[kind], DESKTOP)
    tables = browser.find_elements("css selector", "table.sortable")
    assert tables
    for table in tables:
        heads = table.find_elements("css selector", "thead th")
        for column, head in enumerate(heads):
            for order in ("ascending", "descending"):
                browser.execute_script("arguments[0].click()", head.find_element("css selector", "button"))
                assert head.get_attribute("aria-sort") == order
                cells = browser.execute_script(
                    """return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]])
                    .map(cell => cell.dataset.value ?? cell.textContent)""",
                    table,
                    column,
                )
                known = [cell for cell in cells if cell]
                values = [float(cell) for cell in known] if all(map(is_number, known)) else known
                assert values == sorted(values, reverse=order == "descending")
                # What is unknown comes last either way.
                assert "" not in cells[: len(known)]
        assert len(browser.find_elements("css selector", "th[aria-sort]")) >= 1


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", ["run", "study"])
def test_it_prints_dark_on_white_whatever_the_screen_shows(browser, reports, kind):
    show(browser, reports[kind], DESKTOP, dark=True)
    printed = base64.b64decode(browser.print_page())
    assert printed.startswith(b"%PDF-") and printed.rstrip().endswith(b"%%EOF") and len(printed) > 20_000
    if SCREENSHOTS:
        (Path(SCREENSHOTS) / f"{kind}.pdf").write_bytes(printed)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    ink, paper = brightness(browser)
    assert ink < 0.2 and paper > 0.9
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_page_that_is_broken_is_seen_to_be_so(browser, reports, tmp_path):
    broken = tmp_path / "broken.html"
    text = reports["run"].read_text().replace("data:image/png;base64,iVBOR", "data:image/png;base64,xxxxx", 1)
    wrong = "<script>throw new Error('oops')</script><img src='https://example.com/a.png'>"
    wrong += "<pre style='width: 3000px'>wide</pre>"
    broken.write_text(text.replace("<h1>", wrong + "<h1>"))
    show(browser, broken, PHONE)
    said = json.dumps(browser.get_log("browser"))
    assert "oops" in said and "Content Security Policy" in said
    assert sum(not complete for complete, _ in images(browser)) == 2
    beyond, parts = overflow(browser)
    assert beyond > 0 and "PRE" in parts
