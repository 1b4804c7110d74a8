"""The report's page in a browser: the committed one, which is as large as they get."""

import base64
import io
import json
import re
from pathlib import Path

import pytest

from cdl_hf.comparison.page import as_page
from cdl_hf.comparison.space import write_space

REPORT = Path(__file__).parents[2] / "recipes" / "quickdraw100" / "report"

pytestmark = [pytest.mark.browser]


@pytest.fixture
def page(browser, screen):
    """Shows a page, with options of [`screen`]."""

    def show(width=1400, height=900, file=REPORT / "report.html", **how):
        screen(width, height, **how)
        browser.get(file.as_uri())
        return browser

    return show


def rows(driver, table):
    """Texts of the cells of the rows that are shown, of the first table below a heading."""
    return driver.execute_script(
        """return [...document.querySelector(arguments[0]).tBodies[0].rows].filter((row) => !row.hidden)
           .map((row) => [...row.cells].map((cell) => cell.innerText.trim()))""",
        table,
    )


L2P = '.table[aria-label="L2P"] table'


def test_the_first_screen_has_what_was_compared_who_won_and_a_picture(page):
    driver = page()
    texts, bottoms = driver.execute_script(
        """const shown = [...document.querySelectorAll("h1, #in-brief li, #in-brief svg")];
           return [shown.map((e) => e.textContent), shown.map((e) => e.getBoundingClientRect().bottom)]"""
    )
    assert max(bottoms) < 900
    for start in ("Best student: ", "Distillation", "Data: quickdraw100", "Models: ", "Training: ", "Runs: "):
        assert any(text.startswith(start) for text in texts)
    assert driver.execute_script("return document.querySelectorAll('#in-brief svg').length") == 1


def test_nothing_is_fetched_from_outside(page):
    driver = page()
    requests = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:", "about:")) for url in urls)
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_tables_are_sorted_by_a_click_and_by_the_keyboard(page):
    driver = page()
    header = driver.find_element("css selector", f"{L2P} thead th:nth-child(2)")
    before = rows(driver, L2P)
    header.click()
    accuracies = [float(row[1].split()[0]) for row in rows(driver, L2P)]
    assert accuracies == sorted(accuracies, reverse=True) != [float(row[1].split()[0]) for row in before]
    assert header.get_attribute("aria-sort") == "descending"
    header.find_element("tag name", "button").send_keys("\ue007")  # Enter
    assert [float(row[1].split()[0]) for row in rows(driver, L2P)] == sorted(accuracies)
    driver.find_element("css selector", f"{L2P} thead th:nth-child(3)").click()
    differences = [row[2] for row in rows(driver, L2P)]
    assert differences[-2:] == ["", ""]  # of the teacher and of the student alone
    numbers = [float(text.split()[0]) for text in differences[:-2]]
    assert numbers == sorted(numbers, reverse=True)
    assert header.get_attribute("aria-sort") is None
    driver.find_element("css selector", f"{L2P} thead th").click()
    assert [row[0] for row in rows(driver, L2P)] == sorted((row[0] for row in before), key=str.lower)


def test_a_static_space_sorts_its_tables_and_fetches_nothing(page, tmp_path):
    (tmp_path / "space").mkdir()
    write_space(REPORT, tmp_path / "space")
    driver = page(file=tmp_path / "space" / "index.html")
    driver.find_element("css selector", f"{L2P} thead th:nth-child(2)").click()
    accuracies = [float(row[1].split()[0]) for row in rows(driver, L2P)]
    assert len(accuracies) > 8 and accuracies == sorted(accuracies, reverse=True)
    requests = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:", "about:")) for url in urls)


def test_tables_are_filtered(page):
    driver = page()
    field = driver.find_element("css selector", 'input[aria-label="Filter rows: L2P"]')
    total = len(rows(driver, L2P))
    field.send_keys("joint KD")
    shown = rows(driver, L2P)
    assert 0 < len(shown) < total and all("joint" in row[0] and "KD" in row[0] for row in shown)
    status = driver.find_element("css selector", '.filter:has(input[aria-label="Filter rows: L2P"]) [role="status"]')
    assert status.text == f"{len(shown)} of {total} rows"


def test_the_first_column_stays_in_view(page):
    driver = page(390, 844)
    scrolled, left, right = driver.execute_script(
        """const box = document.querySelector(arguments[0]).parentElement;
           box.scrollLeft = 200;
           const cell = box.querySelector("tbody th").getBoundingClientRect();
           return [box.scrollLeft, cell.left - box.getBoundingClientRect().left, cell.right]""",
        L2P,
    )
    assert scrolled == 200 and left == 0 and right < 200


def test_contents_lead_to_each_section(page):
    driver = page()
    entries = driver.execute_script(
        """return [...document.querySelectorAll("nav a")].map((a) => [a.innerText, a.hash.slice(1)])"""
    )
    headings = driver.execute_script(
        """return [...document.querySelectorAll("main :is(h2, h3, h4)")]
           .map((h) => [h.firstChild.textContent, h.id.replace(/-title$/, "")])"""
    )
    assert entries == headings and len({anchor for _, anchor in entries}) == len(entries) > 8
    driver.find_element("link text", "Baselines").click()
    top = driver.execute_script("return document.getElementById('baselines').getBoundingClientRect().top")
    assert 0 <= top < 100


def test_the_data_can_be_saved_and_no_link_leads_to_another_file(page):
    driver = page()
    links = driver.execute_script(
        """return [...document.querySelectorAll("a[href]")].map((a) => [a.getAttribute("href"), a.download])"""
    )
    ((data, name),) = [link for link in links if link[0].startswith("data:")]
    assert name == "results.csv" and data.startswith("data:text/csv;base64,")
    assert base64.b64decode(data.partition(",")[2]) == (REPORT / "results.csv").read_bytes()
    assert all(href.startswith(("#", "https://", "data:")) for href, _ in links)


def test_the_long_table_of_costs_is_folded(page):
    driver = page()
    table = driver.find_element("css selector", "details .table")
    assert table.get_attribute("aria-label") == "Training cost" and not table.is_displayed()
    driver.find_element("css selector", "main summary").click()
    assert table.is_displayed()


def test_columns_have_headers_that_differ(page):
    headers = page().execute_script(
        """return [...document.querySelectorAll("table")]
           .map((table) => [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim()))"""
    )
    for names in headers:
        assert all(names) and len(set(names)) == len(names)


def test_nothing_is_cut_off_in_print(page):
    pypdf = pytest.importorskip("pypdf", reason="needs pypdf: pip install '.[browser]'")
    driver = page()
    cells = driver.execute_script(
        """document.querySelector("main details").open = true;
           return [...document.querySelectorAll("main :is(th, td)")].map((cell) => cell.innerText)"""
    )
    driver.execute_script("document.querySelector('main details').open = false")
    pdf = driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pages = pypdf.PdfReader(io.BytesIO(base64.b64decode(pdf["data"]))).pages
    width = float(pages[0].mediabox.width)
    assert width > float(pages[0].mediabox.height)
    found, places = [], []

    def visit(text, current, matrix, font, size):
        if text.strip():
            found.append(text)
            places.append(matrix[4] * current[0] + matrix[5] * current[2] + current[4])

    for one in pages:
        one.extract_text(visitor_text=visit)
    margin = 12 / 25.4 * 72
    assert min(places) >= margin - 1 and max(places) < width - margin
    text = re.sub(r"\s+", "", "".join(found))
    assert [cell for cell in cells if re.sub(r"\s+", "", cell) not in text] == []  # with those of the folded table
    assert "Filterrows" not in text


def test_print_has_no_scroll_bars(page):
    driver = page(1020, 700, media="print")  # A4 landscape within its margins
    wide = driver.execute_script(
        """return [...document.querySelectorAll(".table, main")].filter((e) => e.scrollWidth > e.clientWidth + 1)
           .map((e) => e.getAttribute("aria-label"))"""
    )
    assert wide == []


def test_a_phone_needs_no_zoom(page):
    driver = page(390, 844)
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    sizes = driver.execute_script(
        """return [...document.querySelectorAll("svg")].map((svg) => {
             const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
             const sizes = [...svg.querySelectorAll("text")].map((t) => parseFloat(getComputedStyle(t).fontSize));
             return [svg.getBoundingClientRect().right, scale * Math.min(...sizes)];
           })"""
    )
    assert all(right <= 390 and size >= 9.5 for right, size in sizes)


def test_a_dark_system_gets_a_dark_page(page):
    def brightness(**how):
        colors = page(**how).execute_script(
            """const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"""
        )
        return [sum(map(float, re.findall(r"[\d.]+", color)[:3])) for color in colors]

    light, dark = brightness(), brightness(dark=True)
    assert light[0] > 700 > 200 > light[1] and dark[0] < 200 < 600 < dark[1]


@pytest.fixture(scope="module")
def small_page(tmp_path_factory):
    """The beginning and the end of the page: axe-core takes long for many tables and pictures."""
    folder = tmp_path_factory.mktemp("report")
    parts = (REPORT / "report.md").read_text().split("\n## ")
    tables = parts[-2].split("\n### ")
    chapter = "\n### ".join([tables[0], tables[1].split("\n#### ")[0], *tables[-2:]])
    text = "\n## ".join([parts[0], parts[1], chapter, parts[-1]])
    for file in REPORT.glob("*.svg"):
        (folder / file.name).write_text('<svg viewBox="0 0 9 9" xmlns="http://www.w3.org/2000/svg"></svg>')
    drawn = [file.name for file in REPORT.glob("*.svg")]
    (folder / "report.html").write_text(as_page(text, folder, drawn))
    return folder / "report.html"


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_no_rule_of_accessibility_is_broken(page, small_page, axe_findings, width, dark):
    driver = page(width, 844, small_page, dark=dark)
    assert len(driver.find_elements("tag name", "main")) == 1
    driver.find_element("css selector", "main summary").click()
    assert axe_findings() == []


def test_pictures_say_their_finding_name_their_points_and_share_axes(page):
    driver = page()
    labels, titles, ticks = driver.execute_script(
        r"""const all = [...document.querySelectorAll("svg")];
            const differences = all.filter((svg) => svg.textContent.includes("difference to the student alone"));
            return [all.map((svg) => svg.getAttribute("aria-label")),
                    all.map((svg) => [...svg.querySelectorAll("g > title")].map((title) => title.textContent)),
                    differences.map((svg) => [...svg.querySelectorAll("text")].map((t) => t.textContent.trim())
                                             .filter((t) => /^−?\d+$/.test(t)))]"""
    )
    assert all(re.search(r"alone|not beaten by one", label) for label in labels)
    named = [points for points in titles if points]
    assert len(named) == 2 and all(len(set(points)) > 50 for points in named)
    assert re.search(r"^frozen, student alone( \(.+\))?, RanPAC: ", "\n".join(named[0]), re.MULTILINE)
    assert len(ticks) > 3 and all(ticks) and len({tuple(texts) for texts in ticks}) == 1


def test_ids_are_unique(page):
    ids = page().execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(ids)) == len(ids)
