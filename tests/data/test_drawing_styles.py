from dataclasses import replace

import numpy as np

from cdl_hf.data import DATASETS, load_image_dataset
from cdl_hf.data.domains import DOMAIN
from cdl_hf.data.drawing_styles import STYLES


def test_each_drawing_of_a_class_has_the_next_style(tmp_path, monkeypatch):
    plain = load_image_dataset("quickdraw100")["test"].select(range(40))
    for split in ("train", "test"):
        plain.to_parquet(tmp_path / f"{split}.parquet")
    monkeypatch.setitem(DATASETS, "quickdraw100", replace(DATASETS["quickdraw100"], location=str(tmp_path)))
    styled = load_image_dataset("quickdraw100", domain_column="style")["test"]
    assert styled.features[DOMAIN].names == list(STYLES) == ["drawn", "rotated", "thickened", "inverted"]
    labels, styles = (np.array(styled[name][:]) for name in ("label", DOMAIN))
    for label in np.unique(labels):
        of_class = styles[labels == label]
        assert of_class.tolist() == [i % 4 for i in range(len(of_class))]
    expected = {
        0: lambda pixels: pixels,
        1: np.rot90,
        2: lambda pixels: np.lib.stride_tricks.sliding_window_view(np.pad(pixels, 1), (3, 3)).max((2, 3)),
        3: lambda pixels: 255 - pixels,
    }
    for before, after, style in zip(plain["image"][:], styled["image"][:], styles, strict=True):
        pixels = np.asarray(before.convert("L"))
        assert (np.asarray(after.convert("L")) == expected[style](pixels)).all()
