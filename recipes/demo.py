"""A web page with the predictions of a run's teacher and student side by side, as they were after each task.

    python recipes/demo.py runs/my_run                     # opens http://127.0.0.1:7860
    python recipes/demo.py runs/my_run --space my_space    # writes a folder that can be pushed as a Space

Draw (with models of the bundled drawings) or drop an image; the slider goes back to what both knew after each task.
Needs the extra [demo]; the page loads nothing from other sites.
"""

import html
import os
import shutil
import statistics
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import yaml

from cdl_hf.cli import argument, cli_error, parse

TOP = 5
UPLOAD = "20mb"  # the largest file that visitors may upload
TIMED = (
    5  # predictions per image, of whose times the page shows the median: a single one is unreliable on a busy machine
)
COLORS = {"teacher": "#0072B2", "student": "#D55E00"}  # as in the pictures of a run
DRAWINGS = "quickdraw100"  # the data set whose models take drawings
PACKAGES = (  # that a Space needs besides gradio
    *("accelerate", "datasets", "filelock", "huggingface_hub", "numpy", "pyyaml", "safetensors", "timm"),
    *("torch", "torchvision", "transformers"),
)


@dataclass
class DemoArguments:
    """The run and its page."""

    run: str = argument("Output folder of a finished run", positional=True)
    port: int = argument("Port of the page on this machine", 7860, min=1, max=65535)
    space: str | None = argument("New folder to write as a Space for the Hub, instead of opening the page", None)


def main() -> None:
    (args,) = parse((DemoArguments,), description=__doc__)
    try:
        if args.space is not None:
            write_space(Path(args.run), Path(args.space))
            print(f"{args.space} is ready: upload it with `hf upload <name> {args.space} --repo-type space`")
            return
        demo = Demo(Path(args.run))
    except ValueError as error:
        cli_error(str(error))
    try:
        launch(build_page(demo), server_port=args.port)
    except OSError:
        cli_error(f"port {args.port} is taken; choose another")


@dataclass(frozen=True)
class Answer:
    """The most probable classes with their probabilities, and the time that a prediction takes."""

    classes: list[tuple[str, float]]
    milliseconds: float


class Demo:
    """The models of a run, which predict as they did after any of its tasks.

    Args:
        run: Output folder of a finished run.

    Attributes:
        num_tasks: Number of tasks to go back to; 1 if the run's `states/` are missing.
        args: Arguments of the run that the page shows.
        takes_drawings: Whether the models were trained on drawings.

    Raises:
        ValueError: The folder is not a finished run, or a model cannot be loaded.
    """

    def __init__(self, run: Path):
        from PIL import Image

        from cdl_hf.data import eval_transform
        from cdl_hf.hub.saved_models import is_run, load_run
        from cdl_hf.training.task_checkpoints import TaskCheckpoints

        if not is_run(run):
            raise ValueError(f"{run} is not the output folder of a run: it has no args.yaml")
        self.saved = load_run(run)
        some = max(
            self.saved.values(), key=lambda saved: saved.model.config.num_tasks
        )  # a teacher of joint training has one
        self.class_names, self.classes_per_task = some.class_names, some.model.config.classes_per_task
        self.transform = eval_transform(some.image_processor)
        self.states = {role: TaskCheckpoints(run, role) for role in self.saved}
        self.last = some.model.config.tasks_seen - 1
        known = all(s.path(task).is_file() for s in self.states.values() for task in range(self.last + 1))
        self.num_tasks = self.last + 1 if known else 1
        try:
            args = yaml.safe_load((run / "args.yaml").read_text(encoding="utf-8"))
            self.args = {name: args[name] for name in ("dataset", "prompt_method", "distillation")}
        except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{run / 'args.yaml'} is damaged: {reason}, {type(error).__name__}") from error
        self.takes_drawings = self.args["dataset"] == DRAWINGS
        self._lock, self._task = threading.Lock(), self.last
        self.answer(Image.new("RGB", (64, 64)), self.last)  # the first call takes longer than the others

    def task(self, number: int) -> int:
        """Index of the task for the slider's number, which starts at 1."""
        return number - 1 if self.num_tasks > 1 else self.last

    def classes(self, task: int) -> tuple[list[str], list[str]]:
        """Names of all classes seen after a task, and of the classes of this task."""
        stop = sum(self.classes_per_task[: task + 1])
        return self.class_names[:stop], self.class_names[stop - self.classes_per_task[task] : stop]

    def answer(self, image, task: int) -> dict[str, Answer]:
        """The prediction of each model for a PIL image, as it was after `task`."""
        pixel_values = self.transform(image)[None]
        names, _ = self.classes(task)
        answers = {}
        with self._lock:  # one visitor at a time, because the models change with the task
            for role, saved in self.saved.items():
                if task != self._task:
                    self.states[role].load(task, saved.model)
                    saved.model.config.tasks_seen = task + 1
            self._task = task
            for role, saved in self.saved.items():
                times = []
                for _ in range(TIMED):
                    began = time.perf_counter()
                    top = saved.logits(pixel_values)[0].softmax(0).topk(min(TOP, len(names)))
                    columns, shares = top.indices.tolist(), top.values.tolist()  # waits for an accelerator
                    times.append(1000 * (time.perf_counter() - began))
                classes = [(names[column], share) for column, share in zip(columns, shares, strict=True)]
                answers[role] = Answer(classes, statistics.median(times))
        return answers


def render(demo: Demo, image, task: int) -> str:
    """The predictions as HTML: the image that the models see, and a panel for each model."""
    names, new = demo.classes(task)
    learnt = f"After task {task + 1} of {demo.last + 1}: {len(names)} classes, the newest are {', '.join(new)}."
    lines = [f'<p class="learnt">{html.escape(learnt)}</p>']
    if image is None:
        hint = "Draw one of them" if demo.takes_drawings else "Drop an image of one of them"
        return "\n".join([*lines, f'<p class="hint">{hint}, and both models will classify it.</p>'])
    answers = demo.answer(image, task)
    panels = "\n".join(panel(role, answers[role], set(new)) for role in ("teacher", "student") if role in answers)
    seen = (
        f'<figure><img alt="What the models see" src="{as_url(image)}"><figcaption>what they see</figcaption></figure>'
    )
    return "\n".join([*lines, f'<div class="answers">{seen}{panels}</div>'])


def panel(role: str, answer: Answer, new: set[str]) -> str:
    rows = "\n".join(
        f'<li><span class="name">{html.escape(name)}{" <b>new</b>" if name in new else ""}</span>'
        f'<span class="share">{100 * p:.1f}%</span>'
        f'<span class="bar"><i style="width:{100 * p:.1f}%;background:{COLORS[role]}"></i></span></li>'
        for name, p in answer.classes
    )
    return (
        f'<section class="{role}" style="--color:{COLORS[role]}"><h3>{role.capitalize()}</h3>'
        f'<p class="time">{answer.milliseconds:.1f} ms</p><ol>{rows}</ol></section>'
    )


def as_url(image, side: int = 196) -> str:
    """An image as a data URL, enlarged to sharp pixels if it is small."""
    import base64
    from io import BytesIO

    from PIL.Image import Resampling

    image = image.convert("RGB")
    scale = side / max(image.size)
    size = [max(round(scale * length), 1) for length in image.size]
    file = BytesIO()
    image.resize(size, Resampling.NEAREST if scale > 1 else Resampling.LANCZOS).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


CANVAS = """
<canvas width="420" height="420" aria-label="Draw here"></canvas>
<div><button name="undo">Undo</button><button name="clear">Clear</button></div>
"""
CANVAS_STYLE = """
canvas { width: 100%; max-width: 420px; aspect-ratio: 1; background: #fff; border: 1px solid #b8c0cc;
         border-radius: 12px; cursor: crosshair; touch-action: none; display: block; }
div { display: flex; gap: 8px; margin-top: 10px; }
button { margin: 0; padding: 6px 18px; font: inherit; color: inherit; background: transparent; cursor: pointer;
         border: 1px solid #b8c0cc; border-radius: 8px; }
button:hover { border-color: #0072B2; color: #0072B2; }
"""
CANVAS_SCRIPT = """
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let strokes = [], drawing = false;
const place = (event) => {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
const paint = () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.lineWidth = 7; pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "#1c2430";
  for (const stroke of strokes) {
    pen.beginPath();
    pen.moveTo(...stroke[0]);
    for (const point of stroke) pen.lineTo(...point);
    pen.stroke();
  }
};
const tell = () => { paint(); trigger("input", {strokes}); };
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drawing = true; strokes.push([place(event)]); paint();
});
canvas.addEventListener("pointermove", (event) => {
  if (drawing) { strokes[strokes.length - 1].push(place(event)); paint(); }
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => { if (drawing) { drawing = false; tell(); } });
element.querySelector("[name=undo]").addEventListener("click", () => { strokes.pop(); tell(); });
element.querySelector("[name=clear]").addEventListener("click", () => { strokes = []; tell(); });
"""
STYLE = """
.learnt { font-size: 0.95rem; opacity: 0.8; } .hint { margin-top: 2rem; font-size: 1.15rem; }
.answers { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px 32px; margin-top: 12px; }
.answers figure { grid-column: 1 / -1; display: flex; align-items: end; gap: 12px; margin: 0; }
.answers img { height: 112px; border-radius: 6px; image-rendering: pixelated; } figcaption { opacity: 0.7; }
section { border-top: 3px solid var(--color); padding-top: 8px; position: relative; }
section h3 { margin: 0; color: var(--color); }
.time { position: absolute; top: 10px; right: 0; margin: 0; opacity: 0.7; }
ol { list-style: none; margin: 10px 0 0; padding: 0; } li { display: grid; grid-template-columns: 1fr auto; }
li { margin-bottom: 8px; } .share { font-variant-numeric: tabular-nums; }
.name b { font-size: 0.7rem; font-weight: 600; padding: 1px 6px; border-radius: 6px; background: #009E7333; }
.bar { grid-column: 1 / -1; height: 8px; border-radius: 4px; background: #8884; overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 4px; transition: width 0.25s; }
"""


def slider_options(demo: Demo) -> dict:
    """Options of the slider over tasks, which is hidden for a single task: gradio has no range of one value."""
    shown = demo.num_tasks > 1
    return {"minimum": 1, "maximum": demo.num_tasks if shown else 2, "value": demo.num_tasks, "visible": shown}


def build_page(demo: Demo):
    """The page as `gradio.Blocks`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    if find_spec("gradio") is None:
        cli_error("gradio is not installed: pip install 'cdl_hf[demo]'")
    import gradio as gr

    from cdl_hf.data import open_image
    from cdl_hf.data.decoding import DECODING_ERRORS, decoding_problem
    from cdl_hf.data.sketch import as_drawing, draw

    def on_task(image, number: int):
        try:
            return render(demo, image, demo.task(number))
        except ValueError as error:  # damaged states
            raise gr.Error(str(error)) from error

    def on_drawing(number: int, event: gr.EventData):
        image = draw(event.strokes)
        return image, on_task(image, number)

    def on_image(path: str | None, number: int):
        try:
            image = None if path is None else open_image(path)
        except DECODING_ERRORS as error:
            raise gr.Error(f"This image cannot be read: {decoding_problem(error)}") from error
        if image is not None and demo.takes_drawings:
            image = as_drawing(image)
        return image, on_task(image, number)

    prompts = " with learned prompts" if demo.args["prompt_method"] != "none" else ""
    taught = " The student also learned from the teacher." if demo.args["distillation"] != "none" else ""
    with gr.Blocks(title="A teacher and its student", analytics_enabled=False) as page:
        gr.Markdown(
            "# A teacher and its student, task by task\n"
            f"Both are frozen Vision Transformers{prompts}. They learned new classes task by task, without storing "
            f"old images.{taught}"
        )
        image = gr.State()
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                canvas = None
                if demo.takes_drawings:
                    with gr.Tab("Draw"):
                        canvas = gr.HTML(
                            html_template=CANVAS, css_template=CANVAS_STYLE, js_on_load=CANVAS_SCRIPT, elem_id="canvas"
                        )
                with gr.Tab("Drop an image"):
                    # A `gr.Image` would open the file with whatever Pillow knows, and turn 16 bits white.
                    file = gr.File(type="filepath", show_label=False, height=420)
            with gr.Column(scale=7, min_width=360):
                slider = gr.Slider(**slider_options(demo), step=1, label="Tasks learned so far", elem_id="tasks")
                answers = gr.HTML(render(demo, None, demo.task(demo.num_tasks)), css_template=STYLE, elem_id="answers")
        # If strokes come faster than predictions, the last one counts.
        quietly = {"show_progress": "hidden", "trigger_mode": "always_last"}
        if canvas is not None:
            canvas.input(on_drawing, [slider], [image, answers], **quietly)
        file.change(on_image, [file, slider], [image, answers], **quietly)
        slider.change(on_task, [image, slider], [answers], **quietly)
    return page


def launch(page, **options):
    """Serves the page with the visitor's own fonts, nothing from other sites, and a limit for uploads."""
    import gradio as gr

    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return page.launch(theme=theme, footer_links=[], max_file_size=UPLOAD, **options)


APP = """\
from pathlib import Path

from demo import Demo, build_page, launch

launch(build_page(Demo(Path("run"))))
"""


def write_space(run: Path, folder: Path) -> None:
    """Writes a Space: the run's models and states, this page, the package without its data, and its requirements.

    Raises:
        ValueError: The folder exists, or the run cannot be shown.
    """
    import cdl_hf
    from cdl_hf.escaping import portable

    demo = Demo(run)
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new folder")
    if find_spec("gradio") is None:
        raise ValueError("gradio is not installed, and a Space must name its version: pip install 'cdl_hf[demo]'")
    folder.mkdir(parents=True)
    package = Path(cdl_hf.__file__).parent
    unwanted = shutil.ignore_patterns("__pycache__", "assets", "*.png", "checkpoints")
    shutil.copytree(package, folder / "cdl_hf", ignore=unwanted)
    (folder / "run").mkdir()
    for part in (*demo.saved, "states"):
        if (run / part).is_dir():
            shutil.copytree(run / part, folder / "run" / part, ignore=shutil.ignore_patterns("*.npy", "README.md"))
    # Only what the page reads, without the path of the data.
    args = {**demo.args, "dataset": portable(str(demo.args["dataset"]))}
    (folder / "run" / "args.yaml").write_text(yaml.safe_dump(args), encoding="utf-8")
    shutil.copy(__file__, folder / "demo.py")
    (folder / "app.py").write_text(APP, encoding="utf-8")
    (folder / "requirements.txt").write_text(
        "".join(f"{name}=={version(name).split('+')[0]}\n" for name in PACKAGES), encoding="utf-8"
    )
    (folder / "README.md").write_text(
        "---\ntitle: A teacher and its student, task by task\ncolorFrom: blue\ncolorTo: yellow\nsdk: gradio\n"
        f"sdk_version: {version('gradio')}\napp_file: app.py\npinned: false\n---\n\n"
        "A teacher and a student that have learned a stream of tasks (continual distillation learning).\n"
        "Move the slider to see what both knew after each task.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
