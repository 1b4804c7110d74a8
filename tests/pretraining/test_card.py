import pytest

from cdl_hf.pretraining.card import add_probe, backbone_card

RESULT = {
    "arguments": {"model": "vit_tiny_patch16_224", "seed": 3, "probe": None},
    "seconds": 1234,
    "epochs": 7,
    "test_accuracy": 45.67,
    "precision": "bf16",
    "machine": "a machine",
}


def test_card(tmp_path):
    command = ["--dataset", str(tmp_path), "--model_args", '{"depth": 6}']
    card = backbone_card("vit_small", RESULT, command, "20 images of 4 classes of things", 1000)
    assert "# vit_small\n" in card and "7 epochs in 1,234 s, mixed precision bf16, on a machine" in card
    assert f"--dataset {tmp_path.name} \\\n" in card and str(tmp_path.parent) not in card
    assert """--model_args '{"depth": 6}'""" in card
    assert "(1,000) | 45.7 % |" in card


def test_probes_are_rows_of_its_table():
    card = backbone_card("vit_small", RESULT, [], "images", 10)
    once = add_probe(card, "data/cifar100", {"linear_probe": 61.04, "ranpac": 50.0})
    assert once.count("\n| ") == card.count("\n| ") + 2
    assert "%% |\n" not in once and "| linear probe on cifar100 | 61.0 % |\n| RanPAC on cifar100 | 50.0 % |\n" in once
    again = add_probe(once, "data/cifar100", {"linear_probe": 62.0})
    assert "61.0" not in again and "| linear probe on cifar100 | 62.0 % |" in again
    assert once.split("\n\n")[-1] == card.split("\n\n")[-1]


def test_a_foreign_card_is_refused():
    with pytest.raises(ValueError, match="no table 'measured'"):
        add_probe("# Something", "data", {"linear_probe": 1.0})
