"""The report in a real browser: by keyboard, in dark and light, on a phone, without a network."""

import shutil
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

import made_results  # noqa: E402

pytestmark = pytest.mark.slow
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.keys import Keys  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1300,900",
)
ATTACK = "<img src=x onerror=window.hit=1></script><script>window.hit=1</script>"


def page(made: made_results.Made) -> str:
    made_results.report(made)
    return (made.folder / "out" / "report.html").as_uri()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    return page(made_results.Made(tmp_path_factory.mktemp("small"), models=3, datasets=3))


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Reader:
    """Someone at the keyboard."""

    def __init__(self, driver, address: str) -> None:
        self.driver = driver
        driver.get("about:blank")
        driver.get(address)
        self.wait("document.querySelectorAll('#x-list-a details').length > 0")

    def js(self, expression: str, *arguments):
        return self.driver.execute_script(f"return {expression}", *arguments)

    def wait(self, expression: str) -> None:
        end = time.monotonic() + 20
        while not self.js(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def tab_to(self, selector: str, limit: int = 80) -> None:
        for _ in range(limit):
            if self.js("document.activeElement.matches(arguments[0])", selector):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"{selector} was not reached by Tab")

    @property
    def focus(self) -> str:
        return self.js("document.activeElement.textContent.trim()")


@pytest.fixture
def reader(driver, small) -> Reader:
    return Reader(driver, small)


def column(reader: Reader, index: int) -> list[str]:
    rows = "[...document.querySelectorAll('.panel:not([hidden]) tbody tr')]"
    return reader.js(f"{rows}.map(r => r.cells[{index}].dataset.v)")


def test_the_first_stop_skips_to_the_leaderboard(reader):
    reader.press(Keys.TAB)
    assert reader.focus == "Skip to the leaderboard"
    assert reader.js("document.activeElement.getBoundingClientRect().left >= 0")
    reader.press(Keys.ENTER)
    assert reader.js("location.hash") == "#leaderboard"


def test_every_stop_can_be_seen_and_none_holds_the_reader(reader):
    seen = []
    for _ in range(200):
        reader.press(Keys.TAB)
        if reader.js("document.activeElement === document.body"):
            break
        assert reader.js(
            "(b => b.width > 0 && b.height > 0)(document.activeElement.getBoundingClientRect())"
        ), reader.js("document.activeElement.outerHTML")
        seen.append(reader.js("document.activeElement.tagName"))
    else:
        raise AssertionError("the Tab key never left the page")
    assert {"A", "BUTTON", "SELECT", "SUMMARY"} <= set(seen)


def test_tabs_choose_the_measure(reader):
    reader.tab_to("[role=tab]")
    assert reader.focus == "nDCG@10"
    reader.press(Keys.ARROW_RIGHT)
    assert reader.focus == "RR@10"
    shown = "[...document.querySelectorAll('.panel')].map(p => p.getClientRects().length > 0)"
    assert reader.js(shown) == [False, True, False]
    reader.press(Keys.END)
    assert reader.focus == "R@100"
    reader.press(Keys.ARROW_RIGHT)
    assert reader.focus == "nDCG@10"
    assert reader.js(shown) == [True, False, False]
    assert reader.js("document.querySelectorAll('[role=tab][tabindex=\"0\"]').length") == 1


def test_headers_sort_and_say_so(reader):
    reader.tab_to(".panel:not([hidden]) th:nth-child(3) .sort")
    state = "document.activeElement.closest('th').ariaSort"
    assert reader.js(state) == "none"
    reader.press(Keys.ENTER)
    assert reader.js(state) == "descending"
    values = [float(value) for value in column(reader, 2)]
    assert values == sorted(values, reverse=True)
    reader.press(Keys.SPACE)
    assert reader.js(state) == "ascending"
    assert [float(value) for value in column(reader, 2)] == sorted(values)
    assert (
        reader.js("document.querySelectorAll('.panel:not([hidden]) [aria-sort$=ending]').length")
        == 1
    )


def test_arrows_walk_the_numbers_and_enter_opens_one(reader):
    reader.tab_to(".cell")
    first = reader.js("document.activeElement.dataset.c")
    reader.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    there = reader.js("document.activeElement.dataset.c")
    assert there.split(",")[1] == str(int(first.split(",")[1]) + 1)
    assert there.split(",")[0] != first.split(",")[0]
    assert (
        reader.js("document.querySelectorAll('.panel:not([hidden]) .cell[tabindex=\"0\"]').length")
        == 1
    )
    reader.press(Keys.ENTER)
    assert reader.js("document.getElementById('cell').open")
    text = reader.js("document.getElementById('cell').textContent")
    assert "How to reproduce" in text
    assert "snakemake -s Snakefile" in text
    assert reader.js("document.getElementById('cell').contains(document.activeElement)")
    reader.press(Keys.ESCAPE)
    assert not reader.js("document.getElementById('cell').open")
    assert reader.js("document.activeElement.dataset.c") == there


def test_the_explorer_by_keyboard(reader):
    reader.tab_to("#x-a")
    best = reader.js("document.activeElement.selectedOptions[0].text")
    assert best in reader.js("document.getElementById('x-title-a').textContent")
    reader.tab_to("#x-swap")
    reader.press(Keys.SPACE)
    assert best in reader.js("document.getElementById('x-title-b').textContent")
    reader.tab_to("#x-list-a summary")
    reader.press(Keys.ENTER)
    opened = "document.activeElement.parentElement"
    reader.wait(f"{opened}.querySelectorAll('ol li').length > 0")
    assert reader.js(f"{opened}.open")
    assert reader.js(f"{opened}.querySelectorAll('ol').length") == 2
    scores = reader.js("document.activeElement.querySelector('.score').textContent").split()
    assert float(scores[1]) > float(scores[3])


def test_another_dataset_keeps_the_pair(reader):
    pair = reader.js("[document.getElementById('x-a').value, document.getElementById('x-b').value]")
    before = reader.js("document.getElementById('x-list-a').textContent")
    reader.tab_to("#x-column")
    reader.press(Keys.ARROW_DOWN)
    reader.wait(f"document.getElementById('x-list-a').textContent !== {before!r}")
    assert (
        reader.js("[document.getElementById('x-a').value, document.getElementById('x-b').value]")
        == pair
    )


def test_the_filter_keeps_one_verdict(reader):
    reader.tab_to("#verdict-filter")
    reader.press("n")
    shown = "[...document.querySelectorAll('#verdict-table tbody tr')].filter(r => !r.hidden)"
    assert set(reader.js(f"{shown}.map(r => r.dataset.verdict)")) == {"not comparable"}


def test_dark_and_light_by_the_system_and_by_the_button(driver, small):
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        reader = Reader(driver, small)
        colours[scheme] = reader.js(paper)
        weak = reader.js(f"({CONTRAST})()")
        assert weak == []
    assert colours["light"] != colours["dark"]
    reader.tab_to("#theme")
    assert reader.js("document.activeElement.ariaPressed") == "true"
    reader.press(Keys.ENTER)
    assert reader.js(paper) == colours["light"]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# Texts whose contrast with what lies behind them is under 4.5 (WCAG 2.2, relative luminance).
CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const e of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 80)}`);
  }
  return weak;
}"""


def test_a_phone_never_scrolls_sideways(driver, small):
    screen = {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    reader = Reader(driver, small)
    reader.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert reader.js("document.documentElement.scrollWidth") == 360
    assert reader.js("document.querySelector('.scroll').scrollWidth") > 360
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_fetched_and_nothing_complains(driver, small):
    driver.get_log("browser")
    driver.get_log("performance")
    Reader(driver, small)
    assert driver.get_log("browser") == []
    asked = [
        e["message"] for e in driver.get_log("performance") if "requestWillBeSent" in e["message"]
    ]
    assert asked  # the page itself
    assert not [message for message in asked if '"url":"http' in message]


def test_hostile_text_runs_nothing(driver, tmp_path):
    made = made_results.Made(
        tmp_path, ids={0: f"Org/{ATTACK}"}, query_text=ATTACK, document_text=ATTACK
    )
    reader = Reader(driver, page(made))
    reader.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    reader.js("document.querySelector('.cell').click()")
    reader.wait("document.querySelectorAll('.found li').length > 0")
    assert reader.js("window.hit === undefined && document.images.length === 0")
    assert ATTACK in reader.js("document.querySelector('.found li').textContent")


def test_twenty_by_twenty_opens_in_under_a_second(driver, tmp_path):
    """The main thread's own time; the wall clock would measure the machine's other work too."""
    made = made_results.Made(tmp_path, 20, 20, queries=200, documents=400)
    address = page(made)
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    times = []
    for _ in range(3):
        driver.get("about:blank")
        before = busy(driver)
        Reader(driver, address)
        times.append(busy(driver) - before)
    assert min(times) < 1.0


def busy(driver) -> float:
    metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")
