"""The HTML of a page: what is known of the run, the predictions, and the classes. Names are escaped by Jinja."""

import base64
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from .inputs import Input
from .run_facts import RunFacts
from .run_models import Classes, RunModels, most_probable
from .taught import Taught

WEB = Path(__file__).parent / "web"
SIDE = 196  # pixels of the picture of what the models see
FEW = 12  # classes that a sentence can hold
_TEMPLATES = Environment(
    loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def render_header(models: RunModels, facts: RunFacts) -> str:
    return _TEMPLATES.get_template("header.html").render(models=models, facts=facts)


def render_classes(models: RunModels) -> str:
    """All classes by task, with a field to search them."""
    tasks = [models.classes(task) for task in range(models.num_tasks)]
    return _TEMPLATES.get_template("classes.html").render(tasks=tasks)


def render_tasks(models: RunModels) -> str:
    """The control that chooses the task."""
    return _TEMPLATES.get_template("tasks.html").render(num_tasks=models.num_tasks)


def render_answers(
    models: RunModels, facts: RunFacts, task: int, shown: Input | None, taught: Taught | None = None
) -> str:
    """The predictions for an image, as they were after `task`.

    Args:
        taught: What the visitor has taught the models after the last task.

    Raises:
        ValueError: The checkpoint of the task is damaged.
    """
    pixels = None if shown is None else shown.pixels
    new = models.classes(task)
    added: list[str] = []
    answers: dict[str, Classes] = {}
    if task < models.num_tasks - 1:
        taught = None
    if taught is not None:
        added = [name for name in taught.images if name not in models.class_names]
        new = added or new
    if pixels is not None and taught is not None:
        values = models.transform.normalize(pixels[None])
        answers = {role: most_probable(taught.logits(role, values), taught.class_names) for role in taught.models}
    elif pixels is not None:
        answers = models.predict(pixels, task)
    return _TEMPLATES.get_template("answers.html").render(
        facts=facts,
        task=task,
        num_tasks=models.num_tasks,
        num_seen=models.num_seen(task),
        new=new,
        added=added,
        is_taught=taught is not None,
        few=FEW,
        shown=shown,
        picture=None if pixels is None else as_url(pixels),
        size=None if pixels is None else f"{pixels.shape[2]} x {pixels.shape[1]}",
        answers=answers,
    )


def render_taught(models: RunModels, taught: Taught | None, problem: str = "") -> str:
    """What the visitor has taught, or why it cannot be taught."""
    return _TEMPLATES.get_template("taught.html").render(models=models, taught=taught, problem=problem)


def as_url(pixels: Tensor) -> str:
    """uint8 (3, H, W) as a data URL, enlarged to sharp pixels if it is small."""
    image, file = to_pil_image(pixels), BytesIO()
    scale = max(SIDE // max(image.size), 1)
    image.resize((scale * image.width, scale * image.height), 0).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
