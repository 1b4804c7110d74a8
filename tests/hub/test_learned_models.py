"""Records of models that have learned or forgotten classes, which may come from someone else."""

import pytest

from cdl_hf.hub.learned_models import LearnedModels


@pytest.mark.parametrize(
    "rest",
    [
        '"role": "pupil"',
        '"model": ["a"]',
        '"learned": ["cat"]',
        '"learned": [{"new_classes": "cat"}]',
        '"learned": [{"images": "7 | 8"}]',
        '"learned": [{"correct": {"student": [1, "2"]}}]',
        '"learned": [{"correct": 1}]',
    ],
)
def test_a_record_of_other_types_is_refused(tmp_path, rest):
    (tmp_path / "learned.json").write_text(f'{{"arguments": {{}}, {rest}}}')
    with pytest.raises(ValueError, match=r"learned\.json is damaged: .* is not what `cdl-hf` writes"):
        LearnedModels.load(str(tmp_path))
