"""Cards carry valid metadata, tell the run's figures, and their code runs."""

import copy
import json
import re
import shlex

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from PIL import Image

from cdl_hf.catalogue import CONTINUAL_DISTILLATION, DISTILLATION_METHODS, PROMPT_METHODS
from cdl_hf.models import PromptViTConfig, PromptViTForImageClassification
from cdl_hf.runs.model_card import ModelCardContent, complete_model_folder, portable, write_model_card

STUDENT = {
    "accuracy_matrix": [[80.0], [61.25, 70.0]],
    "average_accuracy": 65.625,
    "average_accuracy_by_image": 66.666,
    "average_incremental_accuracy": 72.8125,
    "forgetting": {"cdl": 9.375, "max": 18.75, "bwt": -18.75, "coda": 18.5},
    "parameters": 1234567,
    "trainable_parameters": 7654,
}
TEACHER = {**STUDENT, "average_accuracy": 71.5, "accuracy_matrix": [[90.0], [70.0, 73.0]], "parameters": 9876543}
RESULTS = {
    "stream": {
        "source": "quickdraw100",
        "class_order": "seeded",
        "seed": 3,
        "validation_fraction": 0.0,
        "max_samples_per_class": None,
        "num_tasks": 2,
        "classes_per_task": [2, 12],
        "class_names": ["a|b", "snow_man", *(f"class {i}" for i in range(12))],
        "train": [800, 4000],
        "validation": [0, 0],
        "test": [40, 240],
    },
    "args": {
        "prompt_method": "coda_prompt",
        "distillation": "kdp",
        "classifier": "linear",
        "classifier_alignment": False,
        "output_dir": "/home/somebody/secret",
    },
    "versions": {"cdl_hf": "0.1.0", "torch": "2.14.1"},
    "tested_on": "test",
    "teacher": TEACHER,
    "student": STUDENT,
    "latency_ms": {"device": "CPU, 4 threads", "teacher": 31.25, "student": 11.0},
}


def content(role="student", results=RESULTS, **args):
    results = {**results, "args": {**results["args"], **args}}
    return ModelCardContent(
        role=role,
        results=results,
        backbones={"teacher": "vit_micro_quickdraw", "student": "vit_nano_quickdraw"},
        command=["recipes/train.py", "--prompt_method", "coda_prompt"],
        weights_license="cc-by-4.0",
        data_license="CC BY 4.0, Quick, Draw! by Google",
    )


@pytest.fixture
def card(tmp_path):
    return write_model_card(tmp_path, content()).read_text(encoding="utf-8")


def test_metadata_are_valid(tmp_path):
    path = write_model_card(tmp_path, content())
    assert path == tmp_path / "README.md"
    metadata = metadata_load(path)
    index = metadata.pop("model-index")
    assert metadata == {
        "license": "cc-by-4.0",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": [
            *("continual-learning", "class-incremental-learning", "prompt-tuning", "knowledge-distillation", "vit"),
            *("coda-prompt", "kdp"),
        ],
        "metrics": ["accuracy"],
    }
    name, figures = model_index_to_eval_results(index)
    assert name == "quickdraw100-coda_prompt-kdp-student"
    assert [(figure.metric_type, figure.metric_value) for figure in figures] == [
        ("accuracy", 65.62),
        ("accuracy", 66.67),
        ("accuracy", 72.81),
        ("forgetting", 9.38),
    ]
    assert {(f.task_type, f.dataset_type, f.dataset_split) for f in figures} == {
        ("image-classification", "quickdraw100", "test")
    }
    assert ModelCard.load(path).data.eval_results == figures


def test_hub_names_go_into_the_metadata(tmp_path):
    given = {**vars(content()), "base_model": ["timm/vit_base", "timm/vit_small"], "hub_dataset": "uoft-cs/cifar100"}
    metadata = metadata_load(write_model_card(tmp_path, ModelCardContent(**given)))
    assert (metadata["base_model"], metadata["datasets"]) == (["timm/vit_base", "timm/vit_small"], "uoft-cs/cifar100")
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "uoft-cs/cifar100"


def test_tells_the_run(card):
    for text in (
        "# quickdraw100-coda_prompt-kdp-student\n",
        "(vit_nano_quickdraw) steered by [CODA-Prompt](https://arxiv.org/abs/2211.13218) prompts. It learned 14 "
        "classes in 2 tasks",
        "It was distilled from a teacher (vit_micro_quickdraw) with [KDP](https://arxiv.org/abs/2407.13911) (KD "
        "through knowledge distillation prompts with their own head).\n",
        "Final average accuracy: **65.6%** on the test images, mean over the tasks (teacher: 71.5%). Forgetting: 9.4 "
        "points",
        "14 classes in 2 tasks (class order: seeded, seed 3); 4,800 images for training,\n280 for test",
        "![Accuracy on all classes seen so far, after every task, of teacher and student](accuracy.png)",
        "| 1 | a\\|b, snow\\_man | 80.00 | 61.25 |\n",
        "| 2 | class 0, class 1, class 2, class 3, class 4, class 5, class 6, class 7, class 8, class 9, class 10, "
        "class 11 | 70.00 | 70.00 |\n",
        "| | teacher | student |\n|---|---:|---:|\n| Backbone | vit_micro_quickdraw | vit_nano_quickdraw |\n",
        "| Final accuracy A_N, mean over tasks (%) | 71.50 | 65.62 |\n",
        "| Backward transfer (points) | -18.75 | -18.75 |\n",
        "| Parameters | 9,876,543 | 1,234,567 |\n",
        "| Latency of one image (ms, noisy), CPU, 4 threads | 31.2 | 11.0 |\n",
        "```\nrecipes/train.py --prompt_method coda_prompt\n```",
        "With cdl_hf 0.1.0, torch 2.14.1.\n`results.json`",
        "- Model and backbone weights: cc-by-4.0\n- Images: CC BY 4.0, Quick, Draw! by Google\n",
    ):
        assert text in card
    assert "None" not in card and "secret" not in card


def test_tables_have_as_many_cells_in_every_row(card):
    tables = re.findall(r"(?:^\|.*\|\n)+", card, flags=re.MULTILINE)
    assert [len(table.splitlines()) for table in tables] == [4, 13]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_teacher(tmp_path):
    card = write_model_card(tmp_path, content("teacher")).read_text(encoding="utf-8")
    assert "name: quickdraw100-coda_prompt-teacher" in card
    assert "A student (vit_nano_quickdraw) was distilled from it." in card
    assert "| 1 | a\\|b, snow\\_man | 90.00 | 70.00 |" in card
    assert 'checkpoint = "teacher"' in card
    assert "- kdp" not in card and "hinton" not in card and "knowledge-distillation" not in card
    alone = write_model_card(tmp_path, content("teacher", distillation="none")).read_text(encoding="utf-8")
    assert (
        "distilled" not in alone.split("## Usage")[0].split("# quickdraw")[1].replace("continual distillation", "")
        and "(student: 65.6%)" in alone
    )


def test_student_alone(tmp_path):
    results = {name: value for name, value in RESULTS.items() if name != "teacher"}
    card = write_model_card(tmp_path, content(results=results, distillation="none")).read_text(encoding="utf-8")
    assert "It was trained alone, without a teacher." in card
    assert "## Metrics\n\n| | student |\n" in card
    assert "name: quickdraw100-coda_prompt-student" in card


def test_unknown_licenses_are_said_to_be_unknown(tmp_path):
    given = {**vars(content()), "weights_license": None, "data_license": None}
    path = write_model_card(tmp_path, ModelCardContent(**given))
    assert path.read_text(encoding="utf-8").count("not recorded; see where") == 2
    assert "license" not in metadata_load(path)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/somebody/my images/cifar", "cifar"),
        ("--dataset=/data/cifar/", "--dataset=cifar"),
        ("~/runs/a", "a"),
        ("~somebody/a", "a"),
        (r"C:\data\cifar", "cifar"),
        ("runs/a", "runs/a"),
        ("../others/a.yaml", "../others/a.yaml"),
        ("hf_hub:timm/vit_small", "hf_hub:timm/vit_small"),
        ("--learning_rate=2e-3", "--learning_rate=2e-3"),
        ("--token=hf_" + "aB3" * 11, "--token=hf_..."),
    ],
)
def test_no_path_or_token_of_the_machine(word, shown, tmp_path):
    assert portable(word) == shown
    given = {**vars(content()), "command": ["train.py", word], "backbones": {"teacher": word, "student": word}}
    card = write_model_card(tmp_path, ModelCardContent(**given)).read_text(encoding="utf-8")
    assert shown in card
    assert word == shown or word not in card


def test_every_method_is_named_and_cited(tmp_path):
    for prompt_method, prompts in PROMPT_METHODS.items():
        for distillation, method in DISTILLATION_METHODS.items():
            page = content(prompt_method=prompt_method, distillation=distillation)
            card = write_model_card(tmp_path, page).read_text(encoding="utf-8")
            papers = [CONTINUAL_DISTILLATION, *prompts.papers, *method.papers]
            assert all(card.count(paper.bibtex) == 1 for paper in papers)
            assert prompt_method == "none" or f"[{prompts.title}](" in card
            title = method.title if method.paper is None else f"[{method.title}]({method.paper.url})"
            assert distillation == "none" or f"{title} ({method.description})" in card


def test_a_method_that_is_not_in_the_catalogue_goes_by_its_key(tmp_path):
    page = content(prompt_method="shared_prompt", distillation="logit_copy", classifier="own")
    card = write_model_card(tmp_path, page).read_text(encoding="utf-8")
    assert "steered by shared_prompt prompts" in card and "with logit_copy." in card
    assert "Its classifier: own." in card


@pytest.mark.parametrize("scores", ["own", "teacher", "both"])
def test_an_analytic_student_says_what_it_predicts_with(tmp_path, scores):
    page = content(distillation="analytic", classifier="ranpac", prompt_method="none")
    accuracies = {f"held_out_accuracy_{name}": value for name, value in (("own", 50), ("teacher", 60), ("both", 61))}
    page.results["student"] = {
        **page.results["student"],
        "analytic": {"scores": scores, "cosine": 0.876, **accuracies},
    }
    card = " ".join(write_model_card(tmp_path, page).read_text(encoding="utf-8").split())
    words = {
        "own": "its own classifier alone",
        "teacher": "with the teacher's classifier on",
        "both": "sum of two scores",
    }
    assert [name for name, phrase in words.items() if phrase in card] == [scores]
    assert "50.0% were right with its own classifier, 60.0% with the teacher's and 61.0% with both" in card
    assert "cosine of predicted and true features is 0.88" in card


def test_students_cite_what_they_were_distilled_with(tmp_path):
    kd = {
        name: "hinton2015" in write_model_card(tmp_path, content(distillation=name)).read_text(encoding="utf-8")
        for name in ("none", "kd", "kdp", "dkd")
    }
    assert kd == {"none": False, "kd": True, "kdp": True, "dkd": False}


@pytest.mark.parametrize(
    ("args", "told", "cited"),
    [
        (
            {"classifier": "ranpac"},
            "[RanPAC](https://arxiv.org/abs/2307.02251) (ridge regression",
            "mcdonnell2023ranpac",
        ),
        ({"classifier": "ncm", "prompt_method": "none"}, "nearest class mean", "zhou2024simplecil"),
        ({"classifier_alignment": True}, "trained again after each task on features sampled", "zhang2023slca"),
    ],
)
def test_what_predicts_in_place_of_the_heads_is_told(tmp_path, card, args, told, cited):
    text = write_model_card(tmp_path, content(**args)).read_text(encoding="utf-8")
    assert told in " ".join(text.split()) and cited in text
    assert told not in " ".join(card.split()) and cited not in card


@pytest.mark.parametrize(
    ("role", "args", "name", "tags"),
    [
        ("teacher", {"prompt_method": "none", "classifier": "ranpac"}, "frozen-ranpac-teacher", ["vit", "ranpac"]),
        ("teacher", {"teacher_prompt_method": "none"}, "frozen-teacher", ["vit"]),
        ("student", {"teacher_prompt_method": "none"}, "coda_prompt-kdp-student", ["vit", "coda-prompt", "kdp"]),
        ("student", {"classifier": "ncm"}, "coda_prompt-kdp-ncm-student", ["vit", "coda-prompt", "kdp", "ncm"]),
        (
            "student",
            {"prompt_method": "none", "distillation": "none", "classifier_alignment": True},
            "frozen-aligned-student",
            ["vit"],
        ),
        (
            "student",
            {"prompt_method": "l2p", "distillation": "cdl_prompt"},
            "l2p-cdl_prompt-student",
            ["l2p", "cdl-prompt"],
        ),
    ],
)
def test_name_and_tags_tell_what_made_it(tmp_path, role, args, name, tags):
    metadata = metadata_load(write_model_card(tmp_path, content(role, **args)))
    assert metadata["tags"][-len(tags) :] == tags and "none" not in metadata["tags"]
    assert ("prompt-tuning" in metadata["tags"]) == (not name.startswith("frozen"))
    assert model_index_to_eval_results(metadata["model-index"])[0] == f"quickdraw100-{name}"


def test_long_commands_have_a_line_for_each_option(tmp_path):
    words = [
        "accelerate",
        "launch",
        "recipes/train.py",
        "--dataset",
        "my images",
        "--seed=3",
        "--prompt_blocks",
        *"012",
    ]
    given = {**vars(content()), "command": [*words, "--output_dir", "x" * 60]}
    text = write_model_card(tmp_path, ModelCardContent(**given)).read_text(encoding="utf-8")
    code = text.split("## Training command")[1].split("```")[1]
    assert code.splitlines()[1:4] == [
        "accelerate launch recipes/train.py \\",
        "    --dataset 'my images' \\",
        "    --seed=3 \\",
    ]
    assert shlex.split(code.replace("\\\n", " ")) == given["command"]


def test_long_lists_of_classes_are_cut(tmp_path):
    stream = {**RESULTS["stream"], "classes_per_task": [2, 25]}
    stream["class_names"] = [f"c{i}" for i in range(27)]
    card = write_model_card(tmp_path, content(results={**RESULTS, "stream": stream})).read_text(encoding="utf-8")
    assert "c20, c21 and 5 more |" in card and "c22" not in card


def test_a_model_folder_is_what_a_repository_holds(tmp_path):
    for name in ("accuracy.png", "matrices.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "student").mkdir()
    results = {**RESULTS, "stream": {**RESULTS["stream"], "source": "/data/drawings"}}
    complete_model_folder(tmp_path, content(results=results))
    folder = tmp_path / "student"
    assert {path.name for path in folder.iterdir()} == {"README.md", "results.json", "accuracy.png", "matrices.png"}
    pictures = re.findall(r"!\[.+\]\((.+)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted(pictures) == ["accuracy.png", "matrices.png"]
    told = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert told["student"] == STUDENT
    assert (told["args"]["output_dir"], told["stream"]["source"]) == ("secret", "drawings")


def test_the_code_on_the_card_runs(tmp_path, monkeypatch, card, capsys):
    from transformers import CLIPImageProcessor

    config = PromptViTConfig(
        backbone="vit_tiny_patch16_224",
        backbone_args={"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},
        classes_per_task=[2, 2],
        prompt_method="l2p",
        pool_size=5,
        prompt_length=2,
    )
    model = PromptViTForImageClassification(config)
    model.start_task(["ant", "bee"])
    model.save_pretrained(tmp_path / "student")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "student")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)

    names = {}
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code, names)
    lines = capsys.readouterr().out.strip().splitlines()
    assert {"ant", "bee"} == set(re.findall(r"'label': '(\w+)'", lines[0]))
    assert lines[-1] == re.search(r"'label': '(\w+)'", lines[0]).group(1)


def test_a_card_changes_nothing_it_was_given(tmp_path):
    before = copy.deepcopy(RESULTS)
    write_model_card(tmp_path, content())
    assert before == RESULTS


HOSTILE = "x: [y]\n---\nlicense: mit\n---\n# Title\n<script>alert(1)</script> | `a` ![p](https://example.org/p.png)"


def test_names_change_neither_metadata_nor_page(tmp_path):
    stream = {**RESULTS["stream"], "source": HOSTILE, "class_names": [HOSTILE, *RESULTS["stream"]["class_names"][1:]]}
    results = {**RESULTS, "stream": stream, "latency_ms": {**RESULTS["latency_ms"], "device": HOSTILE}}
    given = {
        **vars(content(results=results)),
        "backbones": {"teacher": HOSTILE, "student": HOSTILE},
        "command": ["train.py", "--dataset", "a\n```\n# Title\n<script>", "``````"],
        "weights_license": HOSTILE,
        "base_model": [HOSTILE, "/home/anna/vit", "timm/vit"],
        "hub_dataset": "../anna/images",
    }
    path = write_model_card(tmp_path, ModelCardContent(**given))
    plain = metadata_load(write_model_card(tmp_path / "plain", content()))
    metadata = metadata_load(path)
    assert metadata.keys() - {"base_model"} == plain.keys()
    assert (metadata["license"], metadata["base_model"]) == ("other", ["timm/vit"])
    name, (figure, *_) = model_index_to_eval_results(metadata["model-index"])
    assert "\n" not in name + figure.dataset_type + figure.dataset_name

    def shape(card):
        body = card.read_text(encoding="utf-8").split("\n---\n", 1)[1]
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
        inner = (child for token in tokens for child in token.children or [])
        return [t.type for t in tokens], [t.type for t in inner if t.type in ("image", "link_open", "html_inline")]

    assert shape(path) == shape(tmp_path / "plain" / "README.md")
    command = path.read_text(encoding="utf-8").split("## Training command")[1]
    assert shlex.split(MarkdownIt().parse(command)[0].content) == given["command"]


def test_nothing_of_the_machine_is_in_what_is_pushed(tmp_path):
    results = {**RESULTS, "stream": {**RESULTS["stream"], "source": "https://anna:pa55@example.org/images.parquet"}}
    for name in ("accuracy.png", "matrices.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "student").mkdir()
    args = {"teacher": "local-dir:/home/anna/vit", "split_file": r"C:\Users\Anna\split.yaml", "extra": ["~anna/a"]}
    given = {**vars(content(results=results, **args)), "command": ["train.py", "--teacher=local-dir:/home/anna/vit"]}
    complete_model_folder(tmp_path, ModelCardContent(**given))
    for file in (tmp_path / "student").iterdir():
        assert not re.search("anna|pa55|home|users", file.read_text(encoding="utf-8"), re.IGNORECASE)


def test_the_size_of_the_weights_is_told(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1_500_000))
    student = {**STUDENT, "classifier_values": 12_000}
    card = write_model_card(tmp_path, content(results={**RESULTS, "student": student})).read_text(encoding="utf-8")
    assert (
        "The weights take 1.5 MB, of which the classifier that predicts is 12,000 numbers. It is a closed set" in card
    )
    assert "The weights take" not in write_model_card(tmp_path / "none", content()).read_text(encoding="utf-8")


def test_drawings_are_white_on_black(tmp_path, card):
    text = write_model_card(tmp_path, ModelCardContent(**{**vars(content()), "is_drawings": True})).read_text()
    assert "wants white lines on black" in text and "wants white lines" not in card


def test_weights_can_be_read_by_whom_the_other_files_can(finished_run):
    rights = {file.name: file.stat().st_mode for file in (finished_run / "student").glob("*.*")}
    assert rights["model.safetensors"] == rights["config.json"] == rights["README.md"]
