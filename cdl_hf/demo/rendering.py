"""The HTML of a page: what is known of the run, the predictions, and the classes. Names are escaped by Jinja."""

import base64
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from .inputs import Input
from .run_facts import RunFacts
from .run_models import RunModels

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


def render_answers(models: RunModels, facts: RunFacts, task: int, shown: Input | None) -> str:
    """The predictions for an image, as they were after `task`.

    Raises:
        ValueError: The checkpoint of the task is damaged.
    """
    pixels = None if shown is None else shown.pixels
    new = models.classes(task)
    return _TEMPLATES.get_template("answers.html").render(
        facts=facts,
        task=task,
        num_tasks=models.num_tasks,
        num_seen=models.num_seen(task),
        new=new,
        few=FEW,
        shown=shown,
        picture=None if pixels is None else as_url(pixels),
        size=None if pixels is None else f"{pixels.shape[2]} x {pixels.shape[1]}",
        answers={} if pixels is None else models.predict(pixels, task),
    )


def as_url(pixels: Tensor) -> str:
    """uint8 (3, H, W) as a data URL, enlarged to sharp pixels if it is small."""
    image, file = to_pil_image(pixels), BytesIO()
    scale = max(SIDE // max(image.size), 1)
    image.resize((scale * image.width, scale * image.height), 0).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
