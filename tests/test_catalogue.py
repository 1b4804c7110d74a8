"""The catalogue holds every method once, as the code registers it."""

import re

import pytest

from cdl_hf.catalogue import ALIGNED_HEAD, CLASSIFIERS, DISTILLATION_METHODS, PROMPT_METHODS, method_of
from cdl_hf.distillation import METHODS
from cdl_hf.models import classifiers, configuration_prompt_vit
from cdl_hf.models.kd_branches import BRANCHES
from cdl_hf.models.prompt_pools import POOLS

ENTRIES = [*PROMPT_METHODS.values(), *DISTILLATION_METHODS.values(), *CLASSIFIERS.values(), ALIGNED_HEAD]
PAPERS = list(dict.fromkeys(paper for method in ENTRIES for paper in method.papers))


def test_every_registered_method_is_in_the_catalogue():
    assert PROMPT_METHODS.keys() == POOLS.keys() == configuration_prompt_vit.PROMPT_DEFAULTS.keys()
    assert DISTILLATION_METHODS.keys() == METHODS.keys()
    assert CLASSIFIERS.keys() == {"linear", *classifiers.CLASSIFIERS} == set(configuration_prompt_vit.HEADS)
    assert {"none", *BRANCHES, "analytic"} == set(configuration_prompt_vit.KD_BRANCHES)
    assert {method.kd_branch for method in METHODS.values()} == set(configuration_prompt_vit.KD_BRANCHES)


def test_titles_tell_the_methods_apart():
    assert len({method.title for method in ENTRIES}) == len(ENTRIES)
    assert all(method.description for method in ENTRIES)
    assert str(method_of(DISTILLATION_METHODS, "lskd")) == "LSKD: KD of standardized logits"
    assert str(method_of(DISTILLATION_METHODS, "my_own")) == "my_own"


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.arxiv)
def test_papers_are_whole(paper):
    assert f"arXiv:{paper.arxiv}" in paper.bibtex
    assert paper.bibtex.count("{") == paper.bibtex.count("}")
    assert all(re.search(rf"^  {name}\s+= {{.+", paper.bibtex, re.MULTILINE) for name in ("title", "author", "year"))


def test_each_paper_is_one_entry():
    keys = [re.match(r"@\w+{(\w+),", paper.bibtex)[1] for paper in PAPERS]
    assert len(set(keys)) == len({paper.arxiv for paper in PAPERS}) == len(PAPERS) == 18
