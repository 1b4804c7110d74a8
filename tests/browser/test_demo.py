"""The demo's page, used as a visitor does: with a mouse, a keyboard, files, on a phone and in a dark system."""

import json

import PIL.Image
import PIL.ImageDraw
import pytest
from tiny_runs import arguments, run_recipe

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(pair, drawings, tmp_path_factory):
    """The page of a run whose models seem to be of the bundled drawings, and can be taught."""
    pytest.importorskip("gradio", reason="needs gradio: pip install '.[demo]'")
    from cdl_hf.demo.page import build_page
    from cdl_hf.demo.run_facts import read_facts
    from cdl_hf.demo.run_models import RunModels
    from cdl_hf.demo.server import launch

    run = tmp_path_factory.mktemp("demo") / "my_run"
    run_recipe("train", *arguments(pair, drawings), "--classifier", "ncm", "--output_dir", run)
    args = run / "args.yaml"
    args.write_text(args.read_text().replace(f"dataset: {drawings}\n", "dataset: quickdraw100\n"))
    models = RunModels(run)
    page = build_page(models, read_facts(run, models))
    launch(page, prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture
def page(browser, url):
    """The page's elements, and waiting for them."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    class Page:
        def __init__(self):
            browser.get(url)
            self.wait(lambda: self.all("#canvas canvas"))
            self.wait(lambda: self.all("[role=tab]"))

        def wait(self, condition):
            return WebDriverWait(browser, 30, 0.05).until(lambda _: condition())

        def all(self, css):
            return browser.find_elements(By.CSS_SELECTOR, css)

        def one(self, css):
            return browser.find_element(By.CSS_SELECTOR, css)

        @property
        def answers(self):
            return browser.execute_script("return document.querySelector('#answers').innerText")

        def shows(self, *texts):
            self.wait(lambda: all(text in self.answers for text in texts))

        @property
        def seen(self):
            script = "return [...document.querySelectorAll('#answers img')].map((image) => image.src)"
            return browser.execute_script(script)

        def stroke(self, *moves):
            pen = ActionChains(browser, duration=10).move_to_element_with_offset(self.one("canvas"), *moves[0])
            pen = pen.click_and_hold()
            for move in moves[1:]:
                pen = pen.move_by_offset(*move)
            pen.release().perform()

        def open(self, tab):
            next(each for each in self.all("[role=tab]") if each.text == tab).click()

        def choose(self, file):
            self.wait(lambda: self.all("#upload input"))
            self.one("#upload input").send_keys(str(file))

    return Page()


def test_draw_choose_a_task_and_play(page, browser, url):
    from selenium.webdriver import Keys

    header = page.one("#header").text
    assert all(part in header for part in ("my_run", "quickdraw100", "6 classes", "3 tasks", "% average accuracy"))
    page.shows("After task 3 of 3: 6 classes", "Both models will classify")
    page.stroke((-80, 0), (160, 0))
    page.shows("Teacher: class_", "Student: class_", "accuracy on the 6 classes so far")
    (one_line,) = page.seen
    page.stroke((0, -80), (0, 160), (30, 0))
    page.wait(lambda: page.seen != [one_line])
    page.one("#canvas [name=undo]").click()
    page.wait(lambda: page.seen == [one_line])

    assert page.one("#tasks label").text == "The models as they were after task 3 of 3"
    assert not page.all("#tasks input[type=number]")  # nothing but tasks can be chosen
    page.one("#tasks input").send_keys(Keys.HOME)
    page.shows("After task 1 of 3: 2 classes", "accuracy on the 2 classes so far")
    assert page.seen == [one_line] and page.one("#tasks output").text == "1"
    page.one("#tasks button").click()
    page.shows("After task 2 of 3")
    page.shows("After task 3 of 3")
    page.wait(lambda: page.one("#tasks button").text == "Play")  # it has ended

    page.one("#canvas [name=clear]").click()
    page.shows("Both models will classify")
    assert not page.seen
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and not [u for u in asked if u.startswith(("http", "ws")) and not u.startswith(url.rstrip("/"))]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_files_that_cannot_be_seen_clear_the_answers(page, tmp_path, browser):
    sent = []
    files = {
        "text.png": (b"text", "cannot be opened as an image"),
        "empty.png": (b"", "The file is empty."),
        "large.png": (bytes(20_000_001), "The file has 20,000,001 bytes, more than the limit of 20,000,000."),
        "huge.png": (PIL.Image.new("1", (20000, 20000)), "400,000,000 pixels, more than the limit of 89,478,485."),
        "blank.png": (PIL.Image.new("L", (99, 99), 200), "There is nothing to see on it"),
    }
    page.open("Choose an image")
    good = PIL.Image.linear_gradient("L")
    good.save(tmp_path / "good.png")
    for name, (content, problem) in files.items():
        page.choose(tmp_path / "good.png")
        page.shows("Teacher: class_")
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            content.save(tmp_path / name)
        browser.get_log("performance")
        page.choose(tmp_path / name)
        page.shows(problem)
        assert not page.seen and "Teacher" not in page.answers and str(tmp_path) not in page.answers
        if any("/upload" in entry["message"] for entry in browser.get_log("performance")):
            sent.append(name)
    assert sent == ["text.png", "blank.png"]  # the others are refused before they are sent
    page.one("#tasks button").click()  # the problem stays, and no earlier image comes back
    page.shows("After task 1 of 3", "There is nothing to see on it")


def test_an_image_stays_as_it_is_until_the_box_is_ticked(page, tmp_path):
    image = PIL.Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    PIL.ImageDraw.Draw(image).ellipse((20, 40, 120, 140), outline=(0, 0, 0, 255), width=9)
    image.save(tmp_path / "transparent.png")
    page.stroke((-80, 0), (160, 0))
    page.shows("Teacher: class_")
    (drawing,) = page.seen
    page.open("Choose an image")
    page.shows("Both models will classify")  # the open tab is empty
    page.choose(tmp_path / "transparent.png")
    page.shows("This image looks inverted: dark on light", "Teacher: class_")
    as_it_is = page.seen
    page.wait(lambda: page.all("input[type=checkbox]"))
    page.one("input[type=checkbox]").click()
    page.wait(lambda: page.seen and page.seen != as_it_is)
    assert "inverted" not in page.answers
    page.open("Draw")
    page.wait(lambda: page.seen == [drawing])


def test_a_class_is_taught_and_known(page, browser):
    from selenium.webdriver import Keys

    name, button = page.one("#teaching textarea, #teaching input"), page.one("#teaching button")
    name.send_keys("line")
    button.click()
    page.wait(lambda: "Draw or choose an image first." in page.one("#taught").text)
    page.stroke((-80, 0), (160, 0))
    page.shows("Teacher: class_")
    name.send_keys(Keys.ENTER)
    page.wait(lambda: "Learned: line (1 image)" in page.one("#taught").text)
    page.shows("Teacher: line", "Student: line", "and what you have taught: 7 classes")
    assert "kB" in page.one("#taught").text and "cdl-hf learn" in page.one("#taught").text
    page.one("#tasks input").send_keys(Keys.HOME)
    page.shows("After task 1 of 3: 2 classes")
    assert "Teacher: line" not in page.answers
    button.click()
    page.wait(lambda: "Choose the last task first" in page.one("#taught").text)
    browser.refresh()  # nobody else sees it, nor does the same visitor again
    page.wait(lambda: "Learned" not in page.one("#taught").text)


def test_all_classes_can_be_searched(page):
    names = lambda: [name.text for name in page.all("#classes li") if name.is_displayed()]  # noqa: E731
    assert names() == [f"class_{i}" for i in range(6)]
    page.one("#classes input").send_keys("S_3")
    assert names() == ["class_3"] and page.one("#classes [role=status]").text == "1 found"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_accessible_and_readable_on_a_phone(page, browser, screen, axe_findings, dark):
    page.stroke((-80, 0), (160, 0))
    page.shows("Teacher: class_")
    screen(390, 844, dark=dark)
    browser.execute_script("document.body.classList.toggle('dark', arguments[0])", dark)  # as gradio does at the start
    page.wait(lambda: page.one("#classes").rect["y"] > page.one("#answers").rect["y"] > page.one("#canvas").rect["y"])
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert page.one("#answers [aria-live]").get_attribute("aria-live") == "polite"
    assert [page.one("h1").tag_name, *(h.text.split(":")[0] for h in page.all("h2"))] == [
        *("h1", "Teacher", "Student", "Teach a class", "All classes"),
    ]
    assert axe_findings() == []
