"""Classes that are added to a finished model, and removed from it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES_PER_TASK, PROMPTS, tiny_model

from cdl_hf.models import PromptViTForImageClassification

PIXELS = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
COMPUTED = {"prompt_method": "none", "ranpac_width": 24}


def finished(head: str, classes_per_task: list[int], **config) -> PromptViTForImageClassification:
    """Has learned four images of each class of its whole stream."""
    torch.manual_seed(0)
    model = tiny_model(tasks=0, head=head, classes_per_task=classes_per_task, **{**COMPUTED, **config})
    first = 0
    for size in classes_per_task:
        model.start_task([f"class {first + i}" for i in range(size)])
        learn(model, range(first, first + size))
        model.end_task()
        first += size
    return model.eval()


def images_of(classes) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor(list(classes)).repeat(4)
    return PIXELS[[class_id * 4 % 24 + i for i in range(4) for class_id in classes]], labels


def learn(model: PromptViTForImageClassification, classes) -> None:
    pixels, labels = images_of(classes)
    model.eval().fit_classifier(model.head_features(pixels), labels)


@pytest.mark.parametrize("head", ["ncm", "ranpac"])
def test_a_saved_model_learns_what_a_longer_stream_would_have_taught(head, tmp_path):
    """In every bit, and with what further classes need in a file of its own."""
    whole, first = finished(head, [2, 1, 2, 1]), finished(head, [2, 1])
    if head == "ranpac":
        first.classifier.projection.copy_(whole.classifier.projection)
        first = finished_again(first)
    first.save_pretrained(tmp_path, save_statistics=True)
    assert (tmp_path / "statistics.safetensors").is_file() == (head == "ranpac")
    model = PromptViTForImageClassification.from_pretrained(tmp_path, load_statistics=True)
    for classes in ([3, 4], [5]):
        model.add_classes([f"class {class_id}" for class_id in classes])
        learn(model, classes)
    assert model.config.classes_per_task == [2, 1, 2, 1] and model.config.id2label == whole.config.id2label
    with torch.no_grad():
        assert torch.equal(model(PIXELS).logits, whole(PIXELS).logits)


def finished_again(model: PromptViTForImageClassification) -> PromptViTForImageClassification:
    """The same with the projection that it has now."""
    projection = model.classifier.projection.clone()
    model.classifier.init_weights()
    model.classifier.projection.copy_(projection)
    first = 0
    for size in model.config.classes_per_task:
        model.config.tasks_seen = model.config.classes_per_task.index(size) + 1
        learn(model, range(first, first + size))
        first += size
    return model


@pytest.mark.parametrize("head", ["ncm", "ranpac"])
def test_further_images_of_a_known_class_equal_all_at_once(head):
    model = finished(head, [3])
    learn(model, [1])
    twice = finished(head, [3])
    pixels, labels = images_of(range(3))
    more, of_one = images_of([1])
    twice.classifier.init_weights()
    if head == "ranpac":
        twice.classifier.projection.copy_(model.classifier.projection)
    twice.fit_classifier(twice.head_features(torch.cat([pixels, more])), torch.cat([labels, of_one]))
    if head == "ncm":
        torch.testing.assert_close(model.classifier.sums, twice.classifier.sums)
    else:
        torch.testing.assert_close(model.classifier.sums.gram, twice.classifier.sums.gram)
        torch.testing.assert_close(model.classifier.sums.sums, twice.classifier.sums.sums)


@pytest.mark.parametrize("head", ["ncm", "ranpac"])
def test_a_removed_class_was_never_there(head):
    few = {"ranpac_width": 8}  # so that the images determine the regression, whatever the ridge
    model, without = finished(head, [2, 2, 1], **few), finished(head, [2, 1, 1], **few)
    pixels, labels = images_of([2])
    model.remove_classes(["class 2"], model.head_features(pixels), labels)
    assert model.config.classes_per_task == [2, 1, 1]
    assert list(model.config.id2label.values()) == ["class 0", "class 1", "class 3", "class 4"]
    without.classifier.init_weights()
    if head == "ranpac":
        without.classifier.projection.copy_(model.classifier.projection)
    pixels, labels = images_of([0, 1, 3, 4])
    without.fit_classifier(without.head_features(pixels), torch.where(labels > 2, labels - 1, labels))
    if head == "ncm":
        torch.testing.assert_close(model.classifier.sums, without.classifier.sums)
        return
    sums = without.classifier.sums
    torch.testing.assert_close(model.classifier.sums.gram, sums.gram, rtol=1e-4, atol=1e-4)
    expected = sums.solve(model.classifier.sums.best_ridge)
    torch.testing.assert_close(model.classifier.weight, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prompt_method", sorted(PROMPTS))
def test_prompts_and_trained_heads_keep_what_they_have_learned(prompt_method):
    model = tiny_model(prompt_method, tasks=3).eval()
    model.end_task()
    with torch.no_grad():
        before = model(PIXELS[:4]).logits
    names = {name for name, _ in model.named_parameters()}
    model.add_classes(["new", "newer"])
    assert model.config.classes_per_task == [*CLASSES_PER_TASK, 2] and model.config.num_trained_tasks == 4
    assert {name for name, _ in model.named_parameters()} == names
    model.train()
    loss = model(PIXELS[:4], labels=torch.tensor([9, 10, 9, 10])).loss
    loss.backward()  # the new task is trained like any other
    model.eval()
    with torch.no_grad():
        after = model(PIXELS[:4]).logits
    assert after.shape == (4, 11)
    if prompt_method in ("l2p", "apt", "lora"):  # the others have new prompts, which are not trained yet
        assert torch.equal(after[:, :9], before)


@pytest.mark.parametrize("prompt_method", ["dualprompt", "coda_prompt", "l2p"])
def test_a_computed_classifier_learns_without_new_prompts(prompt_method):
    model = tiny_model(prompt_method, tasks=3, head="ncm").eval()
    state = {name: value.clone() for name, value in model.prompt_pool.state_dict().items()}
    model.add_classes(["new"])
    learn(model, [9])
    assert model.config.num_trained_tasks == 3
    assert all(torch.equal(value, state[name]) for name, value in model.prompt_pool.state_dict().items())


def test_what_cannot_grow_is_refused_and_unchanged(tmp_path):
    coda = tiny_model("coda_prompt", tasks=3, pool_size=30)
    with pytest.raises(
        ValueError, match="to 40 .* cannot be orthogonal in 32 dimensions; .* or with a computed classifier"
    ):
        coda.add_classes(["new"])
    assert coda.config.num_tasks == 3 and coda.prompt_pool.prompts.shape[1] == 30
    with pytest.raises(ValueError, match="'class 1' is known already"):
        finished("ncm", [2]).add_classes(["class 1"])
    with pytest.raises(ValueError, match="no classes to add"):
        finished("ncm", [2]).add_classes([])
    with pytest.raises(ValueError, match="would lose a part of its"):
        tiny_model("dualprompt", tasks=1).add_classes(["new"])
    with pytest.raises(ValueError, match="trained in its first 1 tasks only"):
        tiny_model("l2p", tasks=3, train_tasks=1).add_classes(["new"])
    ranpac = finished("ranpac", [2])
    ranpac.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no statistics.safetensors, which RanPAC needs"):
        PromptViTForImageClassification.from_pretrained(tmp_path, load_statistics=True)
    model = PromptViTForImageClassification.from_pretrained(tmp_path)
    model.add_classes(["new"])
    with pytest.raises(ValueError, match="RanPAC needs its sums over the earlier images"):
        learn(model, [2])
    with pytest.raises(ValueError, match="give the features and labels"):
        ranpac.remove_classes(["class 1"])
    with pytest.raises(ValueError, match="does not know the class 'cat'"):
        finished("ncm", [2]).remove_classes(["cat"])
    with pytest.raises(ValueError, match="cannot forget all"):
        finished("ncm", [1]).remove_classes(["class 0"])


def test_a_mistake_takes_nothing_back():
    model = finished("ranpac", [2, 1])
    pixels, labels = images_of([1])
    features, gram = model.head_features(pixels), model.classifier.sums.gram.clone()
    for names, given, reason in (
        (["cat"], labels, "does not know the class 'cat'"),
        (["class 0", "class 1", "class 2"], labels, "cannot forget all"),
        (["class 2"], labels, "all of classes to remove"),
        (["class 1"], None, "all of classes to remove"),
        ("class 1", labels, "must be a list of names"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.remove_classes(names, features, given)
    with pytest.raises(ValueError, match="not the images .* that RanPAC was fitted on"):  # one is missing
        model.remove_classes(["class 1"], features[1:], labels[1:])
    with pytest.raises(ValueError, match="must be a list of names"):
        model.add_classes("xyz")
    assert torch.equal(model.classifier.sums.gram, gram) and model.config.seen_classes == 3


def test_statistics_are_those_of_the_weights_beside_them(tmp_path):
    model = finished("ranpac", [2])
    model.save_pretrained(tmp_path, save_statistics=True)
    learn(model, [1])
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "statistics.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda kept: kept.pop("classifier.sums"), "'sums' is missing"),
        (lambda kept: kept.pop("classifier.gram"), "'gram' is missing"),
        (lambda kept: kept["classifier.gram"].fill_(torch.nan), "not finite numbers: 'gram'"),
        (lambda kept: kept.update({"classifier.merits": torch.zeros(3)}), "'merits' is"),
        (lambda kept: kept.update({"classifier.gram": torch.zeros(24, 24).long()}), "'gram' is .* in torch.int64"),
    ],
)
def test_damaged_statistics_are_refused(change, reason, tmp_path):
    finished("ranpac", [2]).save_pretrained(tmp_path, save_statistics=True)
    kept = load_file(tmp_path / "statistics.safetensors")
    change(kept)
    save_file(kept, tmp_path / "statistics.safetensors")
    with pytest.raises(ValueError, match=reason):
        PromptViTForImageClassification.from_pretrained(tmp_path, load_statistics=True)


def test_lora_merged_by_fisher_information_needs_its_statistics(tmp_path):
    model = tiny_model("lora", tasks=1, lora_merging="fisher", classes_per_task=[3])
    for update in model.prompt_pool.each_update():
        torch.nn.init.normal_(update.up)
        update.fisher = torch.rand(update.up.shape[0], update.down.shape[1])
    model.end_task()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LoRA that is merged by Fisher information needs its sums"):
        PromptViTForImageClassification.from_pretrained(tmp_path, load_statistics=True).add_classes(["a", "b"])
    model.save_pretrained(tmp_path, save_statistics=True)
    PromptViTForImageClassification.from_pretrained(tmp_path, load_statistics=True).add_classes(["a", "b"])


def test_statistics_of_another_model_are_refused(tmp_path):
    finished("ranpac", [2], ranpac_width=16).save_pretrained(tmp_path / "other", save_statistics=True)
    finished("ranpac", [2]).save_pretrained(tmp_path / "model")
    (tmp_path / "other" / "statistics.safetensors").rename(tmp_path / "model" / "statistics.safetensors")
    with pytest.raises(ValueError, match="are of another model"):
        PromptViTForImageClassification.from_pretrained(tmp_path / "model", load_statistics=True)
