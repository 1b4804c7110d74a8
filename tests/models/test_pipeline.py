"""What a user sees of a model after each task: `pipeline("image-classification")` with all it takes."""

import base64
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CLASSES_PER_TASK, start_task, tiny_model
from transformers import CLIPImageProcessor, pipeline

TASKS = range(len(CLASSES_PER_TASK))
NAMES = [[f"class {task}.{i}" for i in range(CLASSES_PER_TASK[task])] for task in TASKS]


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The same model, saved after each task."""
    torch.manual_seed(0)
    model, folders = tiny_model("coda_prompt", "kdp", tasks=0), []
    for task in TASKS:
        start_task(model)
        model.end_task()
        folders.append(tmp_path_factory.mktemp(f"task_{task}"))
        model.save_pretrained(folders[-1])
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def classify(checkpoints):
    return pipeline("image-classification", model=str(checkpoints[1]))


def labels(answers):
    return [answer["label"] for answer in answers]


@pytest.mark.parametrize("task", TASKS)
def test_the_classes_seen_and_no_others(checkpoints, image, task):
    classify = pipeline("image-classification", model=str(checkpoints[task]))
    seen = sum(NAMES[: task + 1], [])
    assert [classify.model.config.id2label[i] for i in range(len(seen))] == seen
    answers = classify(image, top_k=100)
    assert sorted(labels(answers)) == sorted(seen)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)


def test_a_class_not_seen_yet_is_not_predicted_however_its_column_tempts(checkpoints, image, tmp_path):
    from cdl_hf.models import PromptViTForImageClassification

    model = PromptViTForImageClassification.from_pretrained(checkpoints[1])
    for head in (model.head, model.kd_head):
        head.bias.data[model.config.seen_classes :] = 1e6
        head.bias.data[0] = 1e3
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    (answer,) = pipeline("image-classification", model=str(tmp_path))(image, top_k=1)
    assert answer == {"label": "class 0.0", "score": pytest.approx(1)}


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k(classify, image, top_k):
    answers = classify(image, top_k=top_k)
    scores = [answer["score"] for answer in answers]
    assert len(answers) == top_k and scores == sorted(scores, reverse=True)
    assert answers == classify(image, top_k=5)[:top_k]


def test_images_in_all_forms(classify, image, tmp_path):
    image.save(tmp_path / "drawing.png")
    encoded = base64.b64encode((tmp_path / "drawing.png").read_bytes()).decode()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/drawing.png"
        answers = [classify(form) for form in (image, str(tmp_path / "drawing.png"), url, encoded)]
    finally:
        server.shutdown()
        server.server_close()
    assert all(answer == answers[0] for answer in answers[1:])


def test_batches_answer_as_single_images_do(classify, image):
    assert classify.model.config.ortho_weight  # a prompt loss, which is not an image's
    images = [image.rotate(angle) for angle in (0, 90, 180, 270, 0)]
    single = [classify(each) for each in images]
    batched = classify(images, batch_size=2)
    streamed = list(classify((each for each in images), batch_size=3))
    assert [labels(answers) for answers in batched] == [labels(answers) for answers in single]
    for answers in (batched, streamed):
        for one, other in zip(answers, single, strict=True):
            assert [a["score"] for a in one] == pytest.approx([a["score"] for a in other], rel=1e-5)


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "P", "CMYK"])
def test_images_of_other_modes(classify, image, mode):
    assert len(classify(image.convert(mode), top_k=2)) == 2
