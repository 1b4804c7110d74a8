"""Each argument's field says what it means for a run, and holds the only default there is."""

import inspect
from dataclasses import MISSING, fields

import pytest

from cdl_hf.arguments.config import RUN, DistillationArguments
from cdl_hf.arguments.sets import (
    affecting,
    found_content,
    names_of,
    not_of_the_run,
    paths,
    planned,
    shown_in_labels,
)
from cdl_hf.arguments.stream import StreamArguments
from cdl_hf.data import TaskStream, image_processor_for, load_image_dataset
from cdl_hf.models import PromptViTConfig

OF_RUN = {f.name for argument_class in RUN for f in fields(argument_class)}


def test_every_argument_of_the_run_affects_one_thing():
    parts = [affecting(what) for what in ("result", "rounding", "files", "nothing")]
    assert sum(map(len, parts)) == len(frozenset.union(*parts)) == len(OF_RUN - not_of_the_run())
    assert "learning_rate" in affecting("result") and "push_to_hub" not in affecting("result")
    rounding = {"gradient_accumulation_steps", "auto_find_batch_size", "eval_batch_size", "allow_tf32"}
    assert affecting("rounding") == rounding
    assert affecting("files", "nothing") == {
        *(
            "cache_teacher_outputs",
            "output_dir",
            "save_steps",
            "save_statistics",
            "report_to",
            "dataloader_num_workers",
        ),
    }


def test_what_is_done_with_a_run_is_not_of_the_run():
    assert not_of_the_run() == {
        *("dry_run", "overwrite_output_dir", "resume_from_checkpoint"),
        *("push_to_hub", "hub_model_id", "hub_private", "hub_task_revisions"),
    }


def test_what_only_says_where_something_is_names_what_is_found():
    found = found_content()
    assert {name for name, content in found.items() if content == "stream"} == names_of(StreamArguments)
    assert {name for name, content in found.items() if content == "backbones"} == {
        *("teacher", "student", "teacher_weights", "student_weights")
    }
    assert (found["teacher_run"], found["student_run"]) == ("states of the teacher", "states of the student")
    assert paths() - found.keys() == {"output_dir"}


def test_what_a_comparison_sets_and_labels():
    assert planned() == {
        *("seed", "stages", "teacher_run", "student_run", "cache_teacher_outputs"),
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint"),
    }
    assert not planned() & shown_in_labels()
    assert shown_in_labels() & names_of(DistillationArguments) == {"distillation"}


def default_of(name: str):
    (found,) = (f for argument_class in RUN for f in fields(argument_class) if f.name == name)
    return found.default_factory() if found.default is MISSING else found.default


@pytest.mark.parametrize("config_name", sorted(names_of(PromptViTConfig) & OF_RUN | {"head"}))
def test_a_model_has_the_argument_s_default(config_name):
    """Most prompt sizes depend on the method: the argument's default, None, stands for the configuration's."""
    if config_name == "classes_per_task":
        pytest.skip("the stream's, with another meaning")
    default = default_of({"head": "classifier"}.get(config_name, config_name))
    of_model = getattr(PromptViTConfig(), config_name)
    assert default == of_model or (default is None and config_name in ("pool_size", "prompt_length", "prompt_blocks"))


@pytest.mark.parametrize("function", [TaskStream, load_image_dataset, image_processor_for])
def test_functions_of_the_data_have_the_arguments_defaults(function):
    parameters = inspect.signature(function).parameters.values()
    shared = {p.name: p.default for p in parameters if p.name in OF_RUN and p.default is not p.empty}
    assert shared
    assert shared == {name: default_of(name) for name in shared}
