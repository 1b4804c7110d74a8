"""The page, built with gradio: an image that is drawn or chosen, the task, the predictions, and classes to teach."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.decoding import MAX_PIXELS
from .inputs import MAX_BYTES, Input, from_file, from_strokes
from .rendering import WEB, render_answers, render_classes, render_header, render_tasks, render_taught
from .run_facts import RunFacts
from .run_models import RunModels
from .taught import MAX_NAME, Taught

logger = logging.getLogger(__name__)

DAMAGED = Input(problem="The models of this task cannot be loaded; the reason is in the log of the server.")


@dataclass(frozen=True)
class Visit:
    """What one visitor has chosen: the task, and what is in the two tabs."""

    task: int
    is_drawing: bool
    drawing: Input | None = None
    upload: Input | None = None
    as_drawing: bool = False
    taught: Taught | None = None

    @property
    def shown(self) -> Input | None:
        """The image of the open tab."""
        if self.is_drawing:
            return self.drawing
        return self.upload.as_drawing if self.upload and self.upload.as_drawing and self.as_drawing else self.upload


def build_page(models: RunModels, facts: RunFacts) -> Any:
    """The page as `gradio.Blocks`.

    Raises:
        ValueError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    if find_spec("gradio") is None:
        raise ValueError("gradio is not installed: pip install 'cdl_hf[demo]'")
    import gradio as gr
    from gradio.utils import get_upload_folder

    def answers(visit: Visit) -> str:
        try:
            return render_answers(models, facts, visit.task, visit.shown, visit.taught)
        except ValueError as error:
            logger.error(str(error))
            return render_answers(models, facts, visit.task, DAMAGED)

    def on_task(visit: Visit, event: gr.EventData) -> tuple:
        visit = replace(visit, task=_task(event.task, models.num_tasks))
        return visit, answers(visit)

    def on_strokes(visit: Visit, event: gr.EventData) -> tuple:
        visit = replace(visit, drawing=from_strokes(event.strokes, models.transform))
        return visit, answers(visit)

    def on_upload(visit: Visit, event: gr.EventData) -> tuple:
        sent = event._data
        if "path" in sent:
            path = Path(sent["path"]).resolve()
            if not path.is_relative_to(Path(get_upload_folder()).resolve()):  # a visitor may send any path
                raise gr.Error("This file was not sent by the page.")
            upload = from_file(str(path), models.transform, models.takes_drawings)
        else:
            upload = Input(problem=str(sent["problem"]))
        visit = replace(visit, upload=upload, as_drawing=False)
        return visit, answers(visit), gr.Checkbox(visible=upload.as_drawing is not None, value=False)

    def on_choice(visit: Visit, as_drawing: bool) -> tuple:
        visit = replace(visit, as_drawing=as_drawing)
        return visit, answers(visit)

    def on_teach(visit: Visit, name: str) -> tuple:
        shown, problem = visit.shown, ""
        if shown is None or shown.pixels is None:
            problem = "Draw or choose an image first."
        elif visit.task < models.num_tasks - 1:
            problem = "Choose the last task first: what you teach comes after it."
        else:
            taught = visit.taught or models.taught()
            try:
                taught.learn(name, models.transform.normalize(shown.pixels[None]))
                visit = replace(visit, taught=taught)
            except ValueError as error:
                problem = str(error)
        return visit, answers(visit), render_taught(models, visit.taught, problem)

    def on_tab(is_drawing: bool) -> Callable[[Visit], tuple]:
        def select(visit: Visit) -> tuple:
            visit = replace(visit, is_drawing=is_drawing)
            return visit, answers(visit)

        return select

    def control(name: str, html: str | None = None, **props: Any) -> Any:
        html = (WEB / f"{name}.html").read_text(encoding="utf-8") if html is None else html
        script = (WEB / f"{name}.js").read_text(encoding="utf-8")
        return gr.HTML(html_template=html, js_on_load=script, elem_id=name, apply_default_css=False, **props)

    start = Visit(models.num_tasks - 1, models.takes_drawings)
    with gr.Blocks(
        title=f"{facts.name}: a teacher and its student", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        visit = gr.State(start)
        gr.HTML(render_header(models, facts), elem_id="header")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                canvas, tabs = None, []
                if models.takes_drawings:
                    with gr.Tab("Draw") as draw_tab:
                        canvas = control("canvas")
                    with gr.Tab("Choose an image") as upload_tab:
                        upload = control("upload", max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
                        choice = gr.Checkbox(
                            label="Make it like the training drawings: white on black, cropped and centered",
                            visible=False,
                        )
                    tabs = [(draw_tab, True), (upload_tab, False)]
                else:
                    upload = control("upload", max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
                    choice = gr.Checkbox(visible=False)
            with gr.Column(scale=7, min_width=320):
                tasks = control("tasks", render_tasks(models)) if models.has_all_tasks else None
                output = gr.HTML(
                    answers(start),
                    elem_id="answers",
                    apply_default_css=False,
                    js_on_load="element.setAttribute('aria-live', 'polite')",
                )
        with gr.Column(elem_id="teaching"):
            gr.HTML("<h2>Teach a class</h2>", apply_default_css=False)
            if not models.cannot_learn:
                with gr.Row():
                    name = gr.Textbox(label="Name of what is shown", max_length=MAX_NAME, scale=3)
                    button = gr.Button("Learn it", scale=1)
            lesson = gr.HTML(
                render_taught(models, None),
                elem_id="taught",
                apply_default_css=False,
                js_on_load="element.setAttribute('aria-live', 'polite')",
            )
        control("classes", render_classes(models))
        # One after the other, because each reads what the one before has chosen; of the same kind only the last.
        options = {"concurrency_id": "visits", "trigger_mode": "always_last", "show_progress": "minimal"}
        if tasks is not None:
            tasks.input(on_task, [visit], [visit, output], **options)
        if canvas is not None:
            canvas.input(on_strokes, [visit], [visit, output], **options)
        upload.input(on_upload, [visit], [visit, output, choice], **options)
        choice.input(on_choice, [visit, choice], [visit, output], **options)
        if not models.cannot_learn:
            gr.on([button.click, name.submit], on_teach, [visit, name], [visit, output, lesson], **options)
        for tab, is_drawing in tabs:
            tab.select(on_tab(is_drawing), [visit], [visit, output], **options)
    return page


def _task(value: Any, num_tasks: int) -> int:
    """Index of a task from the page, which counts from 1.

    Raises:
        ValueError: It is no task.
    """
    if type(value) is not int or not 1 <= value <= num_tasks:
        raise ValueError(f"task must be a whole number from 1 to {num_tasks}, got {value!r}")
    return value - 1
