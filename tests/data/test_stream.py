import json
import warnings

import numpy as np
import pytest
from datasets import DatasetDict
from tiny_data import labelled

from cdl_hf.data import TaskStream


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_natural_stream(stream_data):
    data = stream_data(num_classes=6, train=3, test=2)
    stream = TaskStream(data, 3)
    assert len(stream) == 3 and stream.classes_per_task == [2, 2, 2]
    assert stream.class_names == ["c0", "c1", "c2", "c3", "c4", "c5"]
    assert stream.label_to_class_id.tolist() == [0, 1, 2, 3, 4, 5]
    task = stream[1]
    assert (task.index, task.class_ids, task.class_names, task.validation) == (1, range(2, 4), ["c2", "c3"], None)
    assert task.train["label"][:] == [2, 3] * 3 and task.test["label"][:] == [2, 3] * 2
    assert task.train.data.nbytes == data["train"].data.nbytes, "a view holds indices, not a copy of the rows"


def test_ten_tasks_unless_told_otherwise(stream_data):
    assert TaskStream(stream_data(20)).classes_per_task == [2] * 10


@pytest.mark.parametrize("order", [[3, 0, 2, 1], ["c3", "c0", "c2", "c1"]])
def test_given_class_order_makes_contiguous_columns(stream_data, order):
    stream = TaskStream(stream_data(4), 2, class_order=order)
    assert stream.class_names == ["c3", "c0", "c2", "c1"]
    assert stream.label_to_class_id.tolist() == [1, 3, 2, 0]
    assert set(stream[0].train["label"][:]) == {3, 0} and set(stream[1].test["label"][:]) == {2, 1}
    for task in stream:
        assert set(stream.label_to_class_id[task.train["label"][:]]) == set(task.class_ids)


def numbered(names):
    data = labelled(list(range(len(names))), names)
    return DatasetDict(train=data, test=data)


@pytest.mark.parametrize(
    ("names", "order", "expected"),
    [
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], ["0", "1", "2", "10"]),  # 2 would be the label of 10
        (["1", "2", "3"], ["3", "1", "2"], ["3", "1", "2"]),  # 3 is no label at all
        (["cat", "dog", "7"], ["2", "0", "1"], ["7", "cat", "dog"]),  # not all are names: labels
        (["0", "cat", "dog"], ["dog", " cat", "0 "], ["dog", "cat", "0"]),
        (["a,b", "c"], ["c", "a,b"], ["c", "a,b"]),
        (["b ", "a"], ["b ", "a"], ["b ", "a"]),
        (["²", "x"], ["x", "²"], ["x", "²"]),  # a digit, but no number
        (["cafe\u0301", "tea"], ["tea", "caf\u00e9"], ["tea", "cafe\u0301"]),  # é in two signs, and in one
        (["x", "y", "z"], np.array([2, 0, 1]), ["z", "x", "y"]),
        (["x", "y", "z"], (np.int32(2), 0, np.int64(1)), ["z", "x", "y"]),
    ],
)
def test_entries_of_a_class_order_are_names_before_they_are_labels(names, order, expected):
    assert TaskStream(numbered(names), 1, class_order=order).class_names == expected


def test_seeded_order_is_the_one_of_published_streams(stream_data):
    data = DatasetDict(
        {split: labelled(list(range(100)), [str(c) for c in range(100)]) for split in ("train", "test")}
    )
    assert TaskStream(data, class_order="seeded", seed=1993).class_names[:8] == [
        "68",
        "56",
        "78",
        "8",
        "23",
        "84",
        "90",
        "65",
    ]
    assert TaskStream(data, class_order="seeded", seed=1).class_names[:3] != ["68", "56", "78"]


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({"num_tasks": 1}, [10]),
        ({"num_tasks": 10}, [1] * 10),
        ({"classes_per_task": 5}, [5, 5]),
        ({"classes_per_task": 5, "num_tasks": 2}, [5, 5]),
        ({"num_tasks": 3, "first_task_classes": 4}, [4, 3, 3]),
        ({"classes_per_task": 2, "first_task_classes": 6}, [6, 2, 2]),
        ({"classes_per_task": 2, "first_task_classes": 1}, [1, 2, 2, 2, 2, 1]),
        ({"num_tasks": 1, "first_task_classes": 10}, [10]),
        ({"classes_per_task": 3, "first_task_classes": 10}, [10]),
        ({"num_tasks": 4}, [3, 3, 2, 2]),
        ({"classes_per_task": 4}, [4, 4, 2]),
        ({"num_tasks": 4, "first_task_classes": 3}, [3, 3, 2, 2]),
    ],
)
def test_task_sizes(stream_data, arguments, sizes):
    later = sizes["first_task_classes" in arguments :]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = TaskStream(stream_data(10), **arguments)
    assert stream.classes_per_task == sizes
    assert [len(task.train) for task in stream] == [4 * size for size in sizes]
    expected = ["10 classes do not divide evenly: the tasks have " + ", ".join(map(str, sizes))] * (
        len(set(later)) > 1
    )
    expected += [f"{sizes.count(1)} of {len(sizes)} tasks have only one class"] * (1 in sizes)
    assert len(caught) == len(expected)
    assert all(text in str(warning.message) for text, warning in zip(expected, caught, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 11}, "10 classes cannot be divided into 11 tasks"),
        ({"num_tasks": 0}, "cannot be divided into 0 tasks"),
        (
            {"num_tasks": 1, "first_task_classes": 4},
            "10 classes, 4 of them in the first task, cannot be divided into 1 tasks",
        ),
        ({"num_tasks": 8, "first_task_classes": 4}, "cannot be divided into 8 tasks"),
        ({"num_tasks": 2, "first_task_classes": 10}, "cannot be divided into 2 tasks"),
        ({"first_task_classes": 11}, "first_task_classes must be from 1 to 10"),
        ({"classes_per_task": 0}, "classes_per_task must be at least 1, got 0"),
        ({"classes_per_task": 5, "num_tasks": 3}, "10 classes make 2 tasks with classes_per_task=5, not 3"),
        ({"class_order": "random"}, "must be natural, seeded, or a list"),
        ({"class_order": [0, 1, 2]}, "each of the 10 classes once; it has 3 entries with 3"),
        ({"class_order": [0, 0, *range(2, 10)]}, "it has 10 entries with 9"),
        ({"class_order": [*range(9), 10]}, "it has 10 entries with 9"),
        ({"class_order": ["c0", "cat"]}, "names that are not in the data: cat"),
        ({"validation_fraction": 1.0}, "validation_fraction must be at least 0 and below 1"),
        ({"class_order": ["²", "c1"]}, "names that are not in the data: ²"),
        ({"class_order": [0.0, 1.5]}, "has the entry 0.0; expected labels or class names"),
        ({"class_order": [True, False]}, "has the entry True; expected labels or class names"),
        ({"max_samples_per_class": 0}, "max_samples_per_class must be at least 1"),
    ],
)
def test_wrong_arguments(stream_data, arguments, message):
    with pytest.raises(ValueError) as error:
        TaskStream(stream_data(10), **arguments)
    assert message in str(error.value)


def test_classes_without_images_are_named_before_training():
    names = [f"c{label}" for label in range(10)]
    every, some = labelled(list(range(10)), names), labelled([0, 1, 2], names)
    with pytest.raises(ValueError, match="no train images of 7 classes: c3, c4, c5, c6, c7 and 2 more"):
        TaskStream(DatasetDict(train=some, test=every), 2)
    with pytest.raises(ValueError, match="no test images of 7 classes"):
        TaskStream(DatasetDict(train=every, test=some), 2)


def test_images_without_label_are_counted():
    train = labelled([0, 1, -1, -1], ["a", "b"])
    with pytest.raises(ValueError, match="2 of 4 images have no label"):
        TaskStream(DatasetDict(train=train, test=train), 1)


def image_ids(view):
    return view["id"][:]


def with_ids(data):
    return DatasetDict({split: rows.add_column("id", list(range(len(rows)))) for split, rows in data.items()})


def test_validation_is_a_stratified_part_of_training(stream_data):
    data = with_ids(stream_data(4, train=10))
    stream = TaskStream(data, 2, validation_fraction=0.3)
    for task in stream:
        for label in {*task.train["label"][:]}:
            assert task.train["label"][:].count(label) == 7 and task.validation["label"][:].count(label) == 3
    train = [row for task in stream for row in image_ids(task.train)]
    validation = [row for task in stream for row in image_ids(task.validation)]
    assert sorted(train + validation) == list(range(40))
    assert [len(task.test) for task in stream] == [4, 4]


def test_choices_depend_on_the_seed_alone(stream_data):
    data = with_ids(stream_data(8, train=30))

    def chosen(**arguments):
        stream = TaskStream(data, validation_fraction=0.5, max_samples_per_class=20, **arguments)
        return sorted(row for task in stream for row in image_ids(task.validation))

    first = chosen(num_tasks=2, seed=5)
    np.random.seed(0)
    assert chosen(num_tasks=2, seed=5) == first
    assert chosen(num_tasks=4, seed=5, class_order=[2, 0, 1, 3, 7, 6, 5, 4]) == first
    assert chosen(num_tasks=2, seed=6) != first


def test_validation_leaves_a_training_image():
    data = labelled([0, 0, 0, 1, 1], ["a", "b"])
    stream = TaskStream(DatasetDict(train=data, test=data), 1, validation_fraction=0.9)
    assert sorted(stream[0].train["label"][:]) == [0, 1] and sorted(stream[0].validation["label"][:]) == [0, 0, 1]


def test_classes_with_one_image_cannot_be_validated():
    data = labelled([0, 0, 0, 1, 2], ["a", "b", "c"])
    splits = DatasetDict(train=data, test=data)
    TaskStream(splits, 1)
    with pytest.raises(ValueError, match="no validation images of 2 classes with a single image: b, c;"):
        TaskStream(splits, 1, validation_fraction=0.5)
    with pytest.raises(ValueError, match="no validation images of 3 classes"):
        TaskStream(splits, 1, validation_fraction=0.5, max_samples_per_class=1)


def test_cap_on_samples_of_a_class(stream_data):
    stream = TaskStream(stream_data(4, train=10, test=3), 2, max_samples_per_class=2)
    assert all(sorted(task.train["label"][:]) == sorted([*task.class_ids] * 2) for task in stream)
    assert all(sorted(task.test["label"][:]) == sorted([*task.class_ids] * 2) for task in stream)
    stream = TaskStream(stream_data(4, train=10, test=3), 2, max_samples_per_class=5, validation_fraction=0.2)
    assert [(len(task.train), len(task.validation), len(task.test)) for task in stream] == [(8, 2, 6)] * 2


def test_it_is_a_sliceable_sequence(stream_data):
    stream = TaskStream(stream_data(6), 3, class_order=[5, 4, 3, 2, 1, 0])
    head, tail = stream[:2], stream[1:]
    assert isinstance(head, TaskStream) and len(head) == 2 and list(head) == [stream[0], stream[1]]
    assert head.class_names == ["c5", "c4", "c3", "c2"] and head.classes_per_task == [2, 2]
    assert [task.index for task in tail] == [1, 2] and tail.class_names == stream.class_names
    assert stream[-1].class_ids == range(4, 6) and len(stream) == 3
    with pytest.raises(IndexError):
        stream[3]
    assert stream[:0].class_names == []


def test_description_and_text(stream_data):
    stream = TaskStream(stream_data(6, train=4, test=2), 3, class_order="seeded", seed=2, validation_fraction=0.25)
    about = json.loads(json.dumps(stream[:2].describe()))
    assert about == {
        "source": None,
        "class_order": "seeded",
        "seed": 2,
        "validation_fraction": 0.25,
        "max_samples_per_class": None,
        "unreadable_images_left_out": 0,
        "num_tasks": 2,
        "classes_per_task": [2, 2],
        "class_names": stream.class_names[:4],
        "train": [6, 6],
        "validation": [2, 2],
        "test": [4, 4],
    }
    assert str(stream).splitlines()[1:] == [
        "  6 classes in order of seed 2, 3 tasks of 2",
        "  images: 18 train, 6 validation, 12 test",
    ]
