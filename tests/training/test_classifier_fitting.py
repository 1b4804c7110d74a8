"""Classifiers that are computed or aligned after a task."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_models import tiny_model

from cdl_hf import TaskStream, load_image_dataset
from cdl_hf.data import Batches, TaskImages, eval_transform, image_processor_for
from cdl_hf.models import PromptViTForImageClassification, load_backbone
from cdl_hf.training import ContinualDistillationTrainer
from cdl_hf.training.classifier_fitting import head_features


def results_of(folder: Path, role: str = "student") -> dict:
    return json.loads((folder / "results.json").read_text())[role]


def weights_of(folder: Path, role: str = "student") -> dict[str, torch.Tensor]:
    return load_file(folder / role / "model.safetensors")


def test_class_means_of_frozen_transformers(train, command, pair, drawings, tmp_path):
    extra = ("--prompt_method", "none", "--distillation", "none", "--classifier", "ncm", "--num_train_epochs", "0")
    train(*command, *extra, "--output_dir", tmp_path / "run")
    stream = TaskStream(load_image_dataset(str(drawings)), num_tasks=3)
    transform = eval_transform(
        image_processor_for(load_backbone(str(pair[1])).pretrained_cfg | {"input_size": (3, 16, 16)})
    )
    for role, folder in zip(("teacher", "student"), pair, strict=True):
        backbone = load_backbone(str(folder)).module.eval()
        with torch.no_grad():
            unit, labels = [], []
            for split in ("train", "test"):
                views = (getattr(task, split) for task in stream)
                images = [TaskImages(view, stream.label_to_class_id, transform) for view in views]
                batches = [next(iter(Batches(torch.utils.data.DataLoader(each, 99), each))) for each in images]
                features = [backbone.forward_features(batch["pixel_values"])[:, 0] for batch in batches]
                unit.append(torch.nn.functional.normalize(torch.cat(features), dim=1))
                labels.append(torch.cat([batch["labels"] for batch in batches]))
        means = torch.stack([unit[0][labels[0] == column].mean(0) for column in range(6)])
        right = (unit[1] @ torch.nn.functional.normalize(means, dim=1).T).argmax(1) == labels[1]
        assert results_of(tmp_path / "run", role)["average_accuracy"] == pytest.approx(
            100 * right.float().mean().item()
        )


@pytest.mark.parametrize("head", ["ncm", "ranpac"])
def test_a_computed_head_is_saved_and_changes_no_training(train, command, tmp_path, head):
    train(*command, "--output_dir", tmp_path / "linear")
    train(*command, "--classifier", head, "--ranpac_width", "24", "--output_dir", tmp_path / "computed")
    linear, computed = (weights_of(tmp_path / name) for name in ("linear", "computed"))
    assert all(torch.equal(tensor, computed[name]) for name, tensor in linear.items())
    extra = computed.keys() - linear.keys()
    assert extra and all(name.startswith(("classifier.", "kd_classifier.", "logit_scale")) for name in extra)
    model = PromptViTForImageClassification.from_pretrained(tmp_path / "computed" / "student").eval()
    logits = model(torch.randn(5, 3, 16, 16)).logits
    assert logits.shape == (5, 6) and logits.std() > 0
    features = model.head_features(torch.zeros(2, 3, 16, 16))
    mixed = (model.classifier(features[:, 0], 6) + model.kd_classifier(features[:, 1], 6)) / 2  # kd_alpha 0.5
    assert torch.allclose(model(torch.zeros(2, 3, 16, 16)).logits, model.logit_scale * mixed, atol=1e-4)


@pytest.mark.parametrize(
    "extra",
    [
        ["--classifier", "ranpac", "--ranpac_width", "24"],
        ["--classifier_alignment"],
        ["--classifier", "ncm", "--drift_compensation"],
    ],
)
def test_a_finished_run_gets_another_head(train, command, tmp_path, extra):
    """Without training again, and the same as if it had been trained with it."""
    train(*command, "--output_dir", tmp_path / "linear")
    train(*command, *extra, "--output_dir", tmp_path / "trained")
    given = ("--stages", "student", "--teacher_run", tmp_path / "linear", "--student_run", tmp_path / "linear")
    train(*command, *extra, *given, "--output_dir", tmp_path / "given")
    for role in ("teacher", "student"):
        assert results_of(tmp_path / "given", role) == results_of(tmp_path / "trained", role)
        one, other = (weights_of(tmp_path / name, role) for name in ("given", "trained"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert results_of(tmp_path / "linear") != results_of(tmp_path / "given")


def test_a_kept_teacher_is_neither_fitted_nor_evaluated_again(train, command, tmp_path):
    head = ("--classifier", "ncm")
    train(*command, *head, "--output_dir", tmp_path / "both")
    given = ("--stages", "student", "--teacher_run", tmp_path / "both")
    train(*command, *head, *given, "--output_dir", tmp_path / "student")
    for role in ("teacher", "student"):
        assert results_of(tmp_path / "both", role) == results_of(tmp_path / "student", role)
    teachers = (weights_of(tmp_path / name, "teacher") for name in ("both", "student"))
    assert all(torch.equal(*tensors) for tensors in zip(*(t.values() for t in teachers), strict=True))


RANPAC = ("--classifier", "ranpac", "--ranpac_width", "24")
ANALYTIC = ["--prompt_method", "none", "--classifier", "ranpac", "--ranpac_width", "24", "--num_train_epochs", "0"]
ANALYTIC += ["--distillation", "analytic", "--analytic_width", "16", "--horizontal_flip", "0.5"]


@pytest.fixture
def analytic_run(train, command, tmp_path):
    train(*command, *ANALYTIC, "--output_dir", tmp_path / "both")
    return tmp_path / "both"


def assert_equal_students(one, other):
    results = ({**results_of(folder, "student")} for folder in (one, other))
    assert next(results) == next(results)
    ours, theirs = (weights_of(folder) for folder in (one, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_closed_form_distils_with_a_teacher_of_the_run_or_of_another(train, command, tmp_path, analytic_run):
    """The same student, to the bit; a student that was trained alone gets it as well."""
    report = results_of(analytic_run, "student")["analytic"]
    assert report["scores"] in ("teacher", "own", "both") and -1 <= report["cosine"] <= 1
    given = ("--stages", "student", "--teacher_run", analytic_run)
    train(*command, *ANALYTIC, *given, "--output_dir", tmp_path / "given")
    assert_equal_students(tmp_path / "given", analytic_run)
    train(*command, *ANALYTIC, "--distillation", "none", "--output_dir", tmp_path / "alone")
    given = ("--stages", "student", "--teacher_run", tmp_path / "alone", "--student_run", tmp_path / "alone")
    train(*command, *ANALYTIC, *given, "--output_dir", tmp_path / "later")
    assert_equal_students(tmp_path / "later", analytic_run)


def test_an_analytic_student_of_a_run_is_computed_again_for_another_teacher(train, command, tmp_path, analytic_run):
    """It is not the student of the run's own teacher under another name."""
    other = ("--student_run", analytic_run, "--teacher_run", analytic_run, "--stages", "student")
    train(*command, *ANALYTIC, "--horizontal_flip", "0", *other, "--output_dir", tmp_path / "other")
    one, two = (results_of(folder, "student")["analytic"] for folder in (analytic_run, tmp_path / "other"))
    assert one["cosine"] != two["cosine"]


def test_heads_are_aligned_beside_a_classifier_that_reads_more(train, command, tmp_path):
    train(
        *command,
        "--classifier",
        "ranpac",
        "--ranpac_width",
        "24",
        "--ranpac_layers",
        "2",
        "--classifier_alignment",
        "--num_tasks",
        "1",
        "--num_train_epochs",
        "1",
        "--output_dir",
        tmp_path / "run",
    )
    assert (tmp_path / "run" / "results.json").is_file()


def test_closed_form_goes_on_after_it_was_killed(train, command, tmp_path, analytic_run, monkeypatch):
    evaluate, killed = ContinualDistillationTrainer._evaluate, []

    def kill(trainer, task):
        if task.index == 1:
            killed.append(task)
            raise KeyboardInterrupt
        evaluate(trainer, task)

    monkeypatch.setattr(ContinualDistillationTrainer, "_evaluate", kill)
    with pytest.raises(BaseException):  # noqa: B017  # however the process ends
        train(*command, *ANALYTIC, "--output_dir", tmp_path / "resumed")
    assert killed
    monkeypatch.undo()
    train("--output_dir", tmp_path / "resumed", "--resume_from_checkpoint")
    assert_equal_students(tmp_path / "resumed", analytic_run)


def test_a_student_in_closed_form_learns_from_images_without_labels(train, command, tmp_path, analytic_run, capsys):
    folder = tmp_path / "photos" / "below"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for i in range(30):
        PIL.Image.fromarray((torch.rand(16, 16, 3) * 255).byte().numpy()).save(folder / f"{i}.png")
    more = ("--unlabeled_dataset", folder.parent)
    train(*command, *ANALYTIC, *more, "--output_dir", tmp_path / "with")
    results = json.loads((tmp_path / "with" / "results.json").read_text())
    assert results["unlabeled_images"] == 30
    assert "from 30 images without labels" in (tmp_path / "with" / "student" / "README.md").read_text()
    one, two = (results_of(run, "student")["analytic"]["cosine"] for run in (analytic_run, tmp_path / "with"))
    assert one != two
    photos = folder.parent.rename(tmp_path / "moved")
    train("--output_dir", tmp_path / "with", "--resume_from_checkpoint", "--unlabeled_dataset", photos)
    (photos / "below" / "0.png").unlink()
    with pytest.raises(SystemExit):
        train("--output_dir", tmp_path / "with", "--resume_from_checkpoint", "--unlabeled_dataset", photos)
    assert "images without labels was" in capsys.readouterr().err


def test_images_without_labels_are_checked(train, command, tmp_path, capsys):
    def refused(*arguments) -> str:
        with pytest.raises(SystemExit) as stop:
            train(*command, *arguments, "--unlabeled_dataset", tmp_path / "photos", "--output_dir", tmp_path / "run")
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "there is no file or folder" in refused(*ANALYTIC)
    (tmp_path / "photos").mkdir()
    assert "no files with an image extension" in refused(*ANALYTIC)
    (tmp_path / "photos" / "1.png").write_text("text")
    assert "1 of 1 images without labels cannot be read" in refused(*ANALYTIC)
    assert "is of use to distillation=analytic alone" in refused()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--classifier", "linear"], "head ncm or ranpac"),
        (["--prompt_method", "apt"], "prompts that are trained in each task"),
        (["--stages", "student"], "needs a teacher"),
        (["--cache_teacher_outputs"], "reads the teacher's features and not its cached outputs"),
    ],
)
def test_what_closed_form_cannot_do_is_refused(train, command, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit) as stop:
        train(*command, *ANALYTIC, *more, "--output_dir", tmp_path / "run")
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_aligned_heads_cannot_be_taken_back(train, command, tmp_path, capsys):
    train(*command, "--classifier_alignment", "--output_dir", tmp_path / "aligned")
    with pytest.raises(SystemExit) as stop:
        train(*command, "--stages", "student", "--teacher_run", tmp_path / "aligned", "--output_dir", tmp_path / "new")
    assert stop.value.code == 2
    assert "are aligned" in capsys.readouterr().err


def test_features_hold_no_graph(drawings):
    """With prompts that require gradients, the graphs of all batches would otherwise be kept until the fit."""
    stream = TaskStream(load_image_dataset(str(drawings)), num_tasks=3)
    model = tiny_model("l2p", tasks=0, classes_per_task=stream.classes_per_task)
    model.start_task(stream[0].class_names)
    transform = eval_transform(image_processor_for({"input_size": (3, 32, 32)}))
    images = TaskImages(stream[0].train, stream.label_to_class_id, transform)
    features, labels = head_features(Accelerator(cpu=True), model, images, 4, 0)
    assert features.shape == (14, 1, 32) and labels.tolist() == images.labels.tolist()
    assert any(parameter.requires_grad for parameter in model.parameters()) and not features.requires_grad


def test_heads_that_were_not_trained_neither_predict_nor_teach(train, command, tmp_path, capsys):
    frozen = [*command, "--prompt_method", "none", "--distillation", "none", "--num_train_epochs"]
    train(*frozen, 0, "--classifier", "ncm", "--stages", "teacher", "--output_dir", tmp_path / "untrained")
    student = [*frozen, 1, "--stages", "student", "--teacher_run", tmp_path / "untrained"]
    cases = {
        ("--distillation", "kd"): "classifier=linear would predict with them: take classifier=ncm or ranpac",
        ("--distillation", "kd", "--classifier", "ncm"): "KD learns from their logits: take a run with trained heads",
    }
    for more, told in cases.items():
        with pytest.raises(SystemExit):
            train(*student, *more, "--output_dir", tmp_path / "student")
        assert told in capsys.readouterr().err.splitlines()[-1]
    features = ("--prompt_method", "lora", "--teacher_prompt_method", "none", "--distillation", "features")
    train(*student, *features, "--classifier", "ncm", "--output_dir", tmp_path / "student")
    known = [results_of(tmp_path / name, "teacher")["average_accuracy"] for name in ("untrained", "student")]
    assert known[0] == known[1]
    # the same heads, saved again by a run that computes another classifier for them
    train(*student, *features, *RANPAC, "--output_dir", tmp_path / "again")
    again = [*frozen, 1, "--stages", "student", "--teacher_run", tmp_path / "again"]
    with pytest.raises(SystemExit):
        train(*again, "--distillation", "kd", *RANPAC, "--output_dir", tmp_path / "taught")
    assert "KD learns from their logits" in capsys.readouterr().err


def test_heads_that_a_run_without_epochs_has_taken_over_were_trained(train, command, tmp_path):
    frozen = [*command, "--prompt_method", "none"]
    train(*frozen, "--distillation", "none", "--stages", "teacher", "--output_dir", tmp_path / "trained")
    untrained = ["--distillation", "none", "--num_train_epochs", 0, "--classifier", "ncm", "--stages", "student"]
    train(*frozen, *untrained, "--teacher_run", tmp_path / "trained", "--output_dir", tmp_path / "computed")
    student = [*frozen, "--distillation", "kd", "--stages", "student", "--teacher_run"]
    for run in ("trained", "computed"):
        train(*student, tmp_path / run, "--output_dir", tmp_path / f"{run}-student")
    ours, theirs = (weights_of(tmp_path / f"{run}-student") for run in ("trained", "computed"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_alignment_trains_heads_without_epochs(train, command, tmp_path):
    aligned = ["--prompt_method", "none", "--distillation", "none", "--classifier_alignment", "--num_train_epochs", 0]
    train(*command, *aligned, "--output_dir", tmp_path / "run")
    assert results_of(tmp_path / "run")["average_accuracy"] > 100 / 6
