"""Streams of domains, and streams with blurry boundaries."""

import warnings

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict
from tiny_data import labelled

from cdl_hf.data import TaskStream
from cdl_hf.data.domains import DOMAIN


def domains_of(train, test=None, names=("x", "y", "z"), classes=4):
    """Splits of images given as (label, domain)."""
    test = train if test is None else test
    return DatasetDict(
        {
            split: labelled([label for label, _ in rows], [f"c{i}" for i in range(classes)]).add_column(
                DOMAIN, [domain for _, domain in rows], feature=ClassLabel(names=list(names))
            )
            for split, rows in (("train", train), ("test", test))
        }
    )


EVERYTHING = [(label, domain) for _ in range(3) for label in range(4) for domain in range(3)]


def test_each_domain_is_a_task_with_all_classes():
    stream = TaskStream(domains_of(EVERYTHING))
    assert [task.domain for task in stream] == stream.domains == ["x", "y", "z"] and stream.repeats_classes
    assert stream.classes_per_task == [4, 0, 0] and stream.class_names == ["c0", "c1", "c2", "c3"]
    assert [task.class_ids for task in stream] == [range(0, 4), range(4, 4), range(4, 4)]
    for index, task in enumerate(stream):
        assert task.train[DOMAIN][:] == task.test[DOMAIN][:] == [index] * 12
        assert sorted(task.train["label"][:]) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert stream.describe()["domains"] == ["x", "y", "z"] and "3 tasks of the domains x, y, z" in str(stream)


def test_domains_in_a_given_order_and_classes_in_another():
    stream = TaskStream(domains_of(EVERYTHING), domain_order=["z", "x", "y"], class_order=[3, 1, 2, 0])
    assert stream.domains == ["z", "x", "y"] and stream.class_names == ["c3", "c1", "c2", "c0"]
    assert stream[0].train[DOMAIN][:] == [2] * 12
    assert stream.arguments["domain_order"] == ["z", "x", "y"]


def test_tasks_of_classes_within_domains():
    stream = TaskStream(domains_of(EVERYTHING, names=("x", "y", "z")), classes_per_task=3)
    assert stream.domains == ["x", "x", "y", "y", "z", "z"] and stream.classes_per_task == [3, 1, 0, 0, 0, 0]
    assert [sorted(set(task.train["label"][:])) for task in stream] == [[0, 1, 2], [3]] * 3


def test_domains_with_classes_of_their_own():
    """A class gets its id with the first domain that has it."""
    rows = [(2, 0), (1, 0), (1, 1), (0, 1), (2, 2), (3, 2)]
    stream = TaskStream(domains_of(rows))
    assert stream.class_names == ["c1", "c2", "c0", "c3"] and stream.classes_per_task == [2, 1, 1]
    assert stream.label_to_class_id.tolist() == [2, 0, 1, 3]
    assert [task.class_names for task in stream] == [["c1", "c2"], ["c0"], ["c3"]]


def test_test_images_of_classes_not_seen_by_then_are_left_out():
    train = [(0, 0), (1, 0), (2, 1), (3, 1), (0, 1)]
    test = [(0, 0), (2, 0), (1, 1), (2, 1), (3, 1)]  # class 2 in the domain before it is trained
    with pytest.warns(UserWarning, match="Left out 1 test images of classes that have no training images"):
        stream = TaskStream(domains_of(train, test, names=("x", "y")))
    assert [task.test["label"][:] for task in stream] == [[0], [1, 2, 3]]


def test_joint_training_has_the_same_images_in_one_task():
    stream = TaskStream(domains_of([(2, 0), (1, 0), (1, 1), (0, 1), (2, 2), (3, 2)]), num_tasks=1)
    assert stream.classes_per_task == [4] and stream.domains is None and not stream.repeats_classes
    assert stream.class_names == ["c1", "c2", "c0", "c3"], "as in the stream of domains"
    assert sorted(stream[0].train[DOMAIN][:]) == [0, 0, 1, 1, 2, 2]


def test_limits_and_validation_are_of_each_class_and_domain():
    stream = TaskStream(domains_of(EVERYTHING * 2), validation_fraction=0.25, max_samples_per_class=4)
    for index, task in enumerate(stream):
        assert np.bincount(task.train["label"][:]).tolist() == [3] * 4 and task.validation[DOMAIN][:] == [index] * 4


def test_a_domain_whose_classes_have_one_image_each_cannot_be_validated():
    few = [(label, 0) for label in (0, 0, 1, 1)] + [(2, 1), (3, 1)]
    with pytest.raises(ValueError, match="no validation images in task 2, whose classes have one training image each"):
        TaskStream(domains_of(few, names=("x", "y")), validation_fraction=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 2}, "num_tasks and first_task_classes do not go with domain_column"),
        ({"domain_order": ["x", "y"]}, "domain_order must list each domain once .x, y, z., got x, y"),
        ({"domain_order": ["x", "y", "y"]}, "domain_order must list each domain once"),
    ],
)
def test_what_domains_do_not_go_with(options, message):
    with pytest.raises(ValueError, match=message):
        TaskStream(domains_of(EVERYTHING), **options)


def test_a_domain_needs_test_images(stream_data):
    with pytest.raises(ValueError, match="no test images of the domains z"):
        TaskStream(domains_of(EVERYTHING, [(label, label % 2) for label in range(4)]))
    with pytest.raises(ValueError, match="domain_order needs domain_column"), warnings.catch_warnings():
        TaskStream(stream_data(4), 2, domain_order=["x"])


def blurry_of(data, **options):
    return TaskStream(data, 4, **{"disjoint_class_ratio": 0.5, "blurry_sample_ratio": 0.25, **options})


def test_a_blurry_stream(stream_data):
    """Half of the classes are in one task each; of the others, a quarter of the images are in random tasks."""
    data = stream_data(num_classes=20, train=40, test=2)
    stream = blurry_of(data)
    assert stream.repeats_classes and stream.domains is None and sum(stream.classes_per_task) == 20
    counts = np.array([np.bincount(task.train["label"][:], minlength=20) for task in stream])
    assert (counts.sum(0) == 40).all(), "each image is in one task"
    disjoint = (counts > 0).sum(0) == 1
    assert 10 <= disjoint.sum() <= 11 and (counts > 0).sum(0)[~disjoint].min() >= 2
    home = counts.argmax(0)
    assert 400 - counts[home, np.arange(20)][~disjoint].sum() == pytest.approx(100 * 3 / 4, abs=15)
    for index, task in enumerate(stream):
        seen = stream.label_to_class_id[task.train["label"][:]]
        assert seen.max() < task.class_ids.stop, "no class before its first task"
        assert sorted(set(task.test["label"][:])) == np.flatnonzero(home == index).tolist(), "its own classes"
    assert len({len(task.train) for task in stream}) > 1, "tasks of different sizes"
    of_class = np.empty(20, int)
    of_class[stream.label_to_class_id] = home
    ratios = {"disjoint_class_ratio": 0.5, "blurry_sample_ratio": 0.25}
    assert stream.describe()["blurry"] == {**ratios, "task_of_class": of_class.tolist()}


def test_a_blurry_stream_depends_on_its_seed_alone(stream_data):
    data = stream_data(num_classes=8, train=10, test=1)
    rows = [[task.train["label"][:] for task in blurry_of(data, seed=seed)] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_a_blurry_stream_of_disjoint_classes_repeats_none(stream_data):
    stream = blurry_of(stream_data(num_classes=8, train=3, test=1), disjoint_class_ratio=1)
    for task in stream:
        assert set(stream.label_to_class_id[task.train["label"][:]]) == set(task.class_ids)


def test_all_images_in_random_tasks_still_leave_each_class_in_its_own(stream_data):
    stream = blurry_of(stream_data(num_classes=8, train=3, test=1), disjoint_class_ratio=0, blurry_sample_ratio=1)
    for task in stream:
        assert set(task.test["label"][:]) <= set(task.train["label"][:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blurry_sample_ratio": None}, "give both"),
        ({"blurry_sample_ratio": 1.5}, "blurry_sample_ratio must be between 0 and 1, got 1.5"),
        ({"first_task_classes": 2}, "it goes with num_tasks, and not with domain_column"),
    ],
)
def test_what_a_blurry_stream_does_not_go_with(stream_data, options, message):
    with pytest.raises(ValueError, match=message):
        blurry_of(stream_data(8), **options)
    with pytest.raises(ValueError, match="3 classes cannot be divided into 4 tasks"):
        blurry_of(stream_data(3))
