"""transformers' auto classes and pipelines load the models, whichever package is imported first."""

import subprocess
import sys

import pytest
from tiny_models import tiny_model
from transformers import CLIPImageProcessor

AUTO = "from transformers import AutoConfig, AutoModelForImageClassification, pipeline"
IMPORTS = {"cdl_hf_first": f"import cdl_hf; {AUTO}", "transformers_first": f"{AUTO}; import cdl_hf"}


@pytest.mark.parametrize("order", IMPORTS)
def test_in_a_fresh_process(order, tmp_path):
    tiny_model("l2p").save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    code = (
        f"{IMPORTS[order]}\nfolder = {str(tmp_path)!r}\n"
        "made = AutoConfig.from_pretrained(folder), AutoModelForImageClassification.from_pretrained(folder), "
        "pipeline('image-classification', model=folder).model\n"
        "print(*(type(each).__name__ for each in made))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PromptViTConfig", *["PromptViTForImageClassification"] * 2]


def test_other_modules_are_found_as_before():
    """The hook answers for the auto classes alone."""
    code = (
        "import cdl_hf, sys, importlib.util as util; hook = sys.meta_path[0]; "
        "print(type(hook).__name__, hook.find_spec('json'), util.find_spec('json').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["_RegisterOnImport", "None", "json"]
