"""recipes/demo.py: what it answers, and the page in a real browser where there is one."""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import numpy as np
import PIL.Image
import pytest
from tiny_runs import arguments, load_recipe, run_recipe

from cdl_hf.hub.saved_models import load_run

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("demo")


@pytest.fixture(scope="module")
def demo(recipe, finished_run):
    return recipe.Demo(finished_run)


@pytest.fixture(scope="module")
def image(drawings):
    return PIL.Image.open(drawings / "test" / "class_3" / "0.png").convert("RGB")


def test_answers_are_those_of_each_task(demo, finished_run, image):
    assert demo.num_tasks == 3 and not demo.takes_drawings
    last = demo.answer(image, 2)
    for role, saved in load_run(finished_run).items():
        probabilities = saved.logits(demo.transform(image)[None])[0].softmax(0)
        expected = sorted(zip(saved.class_names, probabilities.tolist(), strict=True), key=lambda c: -c[1])[:5]
        assert [name for name, _ in last[role].classes] == [name for name, _ in expected]
        assert [p for _, p in last[role].classes] == pytest.approx([p for _, p in expected], abs=1e-6)
        assert last[role].milliseconds > 0
    first = demo.answer(image, 0)
    for answer in first.values():
        assert {name for name, _ in answer.classes} == {"class_0", "class_1"}
        assert sum(p for _, p in answer.classes) == pytest.approx(1)
    again = demo.answer(image, 2)
    assert {role: answer.classes for role, answer in again.items()} == {r: a.classes for r, a in last.items()}


def test_accuracy_after_the_first_task_is_that_of_the_run(demo, finished_run, drawings):
    results = json.loads((finished_run / "results.json").read_text())
    right = dict.fromkeys(demo.saved, 0)
    for label in (0, 1):
        for file in (drawings / "test" / f"class_{label}").iterdir():
            answers = demo.answer(PIL.Image.open(file), 0)
            for role in right:
                right[role] += answers[role].classes[0][0] == f"class_{label}"
    for role, count in right.items():
        assert results[role]["accuracy_matrix"][0] == [pytest.approx(100 * count / 8)]


def test_page_tells_what_is_known_and_what_is_new(recipe, demo, image):
    text = recipe.render(demo, image, 1)
    assert "After task 2 of 3: 4 classes, the newest are class_2, class_3." in text
    assert text.count("<li>") == 2 * 4 and text.count("<b>new</b>") == 2 * 2
    assert text.index("Teacher") < text.index("Student") and "data:image/png;base64," in text
    assert "Drop an image" in recipe.render(demo, None, 0)


def test_names_of_classes_are_no_markup(recipe):
    answer = recipe.Answer([("<script>", 0.75), ("b & c", 0.25)], 1.0)
    text = recipe.panel("student", answer, {"b & c"})
    assert "&lt;script&gt;" in text and "<script>" not in text and "b &amp; c <b>new</b>" in text
    assert "75.0%" in text and "width:25.0%" in text


def test_a_run_without_states_shows_its_end(recipe, finished_run, image, tmp_path):
    for part in ("teacher", "student"):
        shutil.copytree(finished_run / part, tmp_path / part)
    shutil.copy(finished_run / "args.yaml", tmp_path)
    demo = recipe.Demo(tmp_path)
    assert demo.num_tasks == 1 and demo.task(1) == 2
    assert "After task 3 of 3: 6 classes" in recipe.render(demo, image, demo.task(1))


@pytest.fixture(scope="module")
def runs(pair, drawings, finished_run, tmp_path_factory):
    """A finished run of each kind, by its name."""
    folder = tmp_path_factory.mktemp("runs")
    few = (*arguments(pair, drawings), "--num_train_epochs", "1", "--max_samples_per_class", "2")
    run_recipe("train", *few, "--num_tasks", "1", "--output_dir", folder / "one task")
    for name, left_out in (("teacher", "student"), ("student", "teacher"), ("without states", "states")):
        shutil.copytree(finished_run, folder / name, ignore=shutil.ignore_patterns(left_out, "checkpoints"))
    return {path.name: path for path in folder.iterdir()} | {"all": finished_run}


TASKS = {"all": (3, 3), "one task": (1, 1), "teacher": (3, 3), "student": (3, 3), "without states": (1, 3)}


@pytest.mark.parametrize("name", TASKS)
def test_the_page_of_every_kind_of_run(recipe, runs, name, image):
    demo = recipe.Demo(runs[name])
    tasks, last = TASKS[name]
    assert demo.num_tasks == tasks and f"After task {last} of {last}" in recipe.render(demo, image, demo.task(tasks))
    options = recipe.slider_options(demo)
    assert options["minimum"] <= options["value"] <= options["maximum"] > options["minimum"]
    assert options["visible"] == (tasks > 1)
    if find_spec("gradio"):
        assert recipe.build_page(demo).blocks


@pytest.mark.skipif(not find_spec("gradio"), reason="needs gradio: pip install '.[demo]'")
def test_an_uploaded_file_is_opened_as_in_training(recipe, demo, tmp_path):
    page = recipe.build_page(demo)
    (on_image,) = [f.fn for f in page.fns.values() if f.name == "on_image"]
    deep = tmp_path / "deep.png"
    PIL.Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)).save(deep)
    image, answers = on_image(str(deep), 3)
    assert np.asarray(image).ravel().tolist() == list(range(256)) and "Teacher" in answers
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "page.png", "EPS")
    import gradio

    with pytest.raises(gradio.Error, match="cannot be read: not an image"):
        on_image(str(tmp_path / "page.png"), 3)


@pytest.mark.skipif(not find_spec("gradio"), reason="needs gradio: pip install '.[demo]'")
def test_uploads_are_limited(recipe):
    class Page:
        def launch(self, **options):
            return options

    assert recipe.launch(Page())["max_file_size"] == "20mb"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "error: run is required"),
        (["nowhere"], "not the output folder of a run"),
        (["{run}/student"], "not the output folder of a run"),
        (["{run}", "--space", "{run}"], "exists; name a new folder"),
        (["{run}", "--port", "70000"], "from 1 to 65535"),
    ],
)
def test_mistakes_are_told(finished_run, capsys, arguments, told):
    with pytest.raises(SystemExit) as stop:
        run_recipe("demo", *(argument.format(run=finished_run) for argument in arguments))
    assert stop.value.code == 2 and told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("content", ["", "[]", "x", "{", "dataset: a", "\0", "!!python/object/apply:os.getcwd []"])
def test_damaged_arguments_are_told(recipe, finished_run, tmp_path, content):
    for role in ("teacher", "student"):
        (tmp_path / role).symlink_to(finished_run / role)
    (tmp_path / "args.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"^[^\n]*args.yaml is damaged: [^\n]*$"):
        recipe.Demo(tmp_path)


def test_without_gradio_it_is_told(recipe, demo, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        recipe.build_page(demo)
    assert "pip install 'cdl_hf[demo]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_space_stands_alone(recipe, finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "find_spec", lambda name: True)
    monkeypatch.setattr(recipe, "version", lambda name: "6.0" if name == "gradio" else "1.0+cpu")
    space = tmp_path / "space"
    recipe.write_space(finished_run, space)
    header = (space / "README.md").read_text().split("---")[1]
    assert "sdk: gradio\nsdk_version: 6.0\napp_file: app.py\n" in header
    assert "torch==1.0\n" in (space / "requirements.txt").read_text()
    compile((space / "app.py").read_text(), "app.py", "exec")
    use = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path; from PIL import Image; import cdl_hf; from demo import Demo, render\n"
        "assert Path(cdl_hf.__file__).parent == Path('cdl_hf').absolute()\n"
        "print(render(Demo(Path('run')), Image.new('RGB', (16, 16)), 0))"
    )
    done = subprocess.run([sys.executable, "-c", use], cwd=space, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "After task 1 of 3" in done.stdout and "Teacher" in done.stdout


@pytest.fixture
def browser():
    """Chromium without a window, which keeps what it logs and asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        for argument in (
            *("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"),
            *("disable-sync", "no-first-run", f"user-data-dir={profile}", "window-size=1280,900"),
        ):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        yield browser
        browser.quit()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver (Debian: chromium-driver)")
@pytest.mark.skipif(
    not (find_spec("gradio") and find_spec("selenium")), reason="needs both: pip install '.[demo]' selenium"
)
def test_draw_and_read_the_answer(recipe, finished_run, drawings, tmp_path, browser):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    args = run / "args.yaml"
    args.write_text(args.read_text().replace(f"dataset: {drawings}\n", "dataset: quickdraw100\n"))
    page = recipe.build_page(recipe.Demo(run))
    _, url, _ = recipe.launch(page, prevent_thread_lock=True, quiet=True, server_port=None)
    try:
        browser.get(url)
        wait = WebDriverWait(browser, 60)
        canvas = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#canvas canvas"))

        def answers() -> str:
            return browser.find_element(By.ID, "answers").text

        def seen() -> str:
            pictures = browser.find_elements(By.CSS_SELECTOR, "#answers img")
            return pictures[0].get_attribute("src") if pictures else ""

        def stroke(*moves):
            pen = ActionChains(browser, duration=20).move_to_element_with_offset(canvas, *moves[0]).click_and_hold()
            for move in moves[1:]:
                pen = pen.move_by_offset(*move)
            pen.release().perform()

        assert "After task 3 of 3: 6 classes" in answers() and "Draw one of them" in answers()
        stroke((-80, 0), (160, 0))
        wait.until(lambda b: "Teacher" in answers() and answers().count("%") == 2 * 5)
        one_line = seen()
        stroke((0, -80), (0, 160), (30, 0))
        wait.until(lambda b: seen() != one_line)
        browser.find_element(By.CSS_SELECTOR, "#canvas [name=undo]").click()
        wait.until(lambda b: seen() == one_line)

        slider = browser.find_element(By.CSS_SELECTOR, "#tasks input[type=range]")
        slider.send_keys(Keys.HOME)
        wait.until(lambda b: "After task 1 of 3: 2 classes" in answers() and answers().count("%") == 2 * 2)
        assert seen() == one_line  # the drawing is still there

        browser.find_element(By.CSS_SELECTOR, "#canvas [name=clear]").click()
        wait.until(lambda b: "Draw one of them" in answers())
        tab = next(b for b in browser.find_elements(By.CSS_SELECTOR, "[role=tab]") if b.text == "Drop an image")
        tab.click()
        file = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "input[type=file]"))
        file.send_keys(str(drawings / "test" / "class_0" / "0.png"))
        wait.until(lambda b: answers().count("%") == 2 * 2)

        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert asked and not [u for u in asked if u.startswith(("http", "ws")) and not u.startswith(url.rstrip("/"))]
    finally:
        page.close()
