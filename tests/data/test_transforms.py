from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import timm.data
import torch
from tiny_data import noise
from transformers import AutoImageProcessor, CLIPImageProcessor

from cdl_hf.data import eval_transform, image_processor_for, train_transform
from cdl_hf.data.transforms import evaluation_of

BACKBONE = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": (0.48, 0.45, 0.40),
    "std": (0.22, 0.26, 0.31),
}
# one that differs in every way that matters from the last
CASES = [
    (BACKBONE, "backbone"),
    (BACKBONE, "none"),
    (BACKBONE | {"interpolation": "bilinear", "crop_pct": 1.0}, "backbone"),
    (BACKBONE | {"interpolation": "nearest"}, "backbone"),
    (BACKBONE | {"crop_mode": "squash"}, "backbone"),
    (BACKBONE | {"input_size": (3, 24, 40)}, "backbone"),
]
SIZES = [(28, 28), (32, 32), (35, 35), (71, 50), (33, 120), (5, 7), (1, 9), (64, 65)]


def official(processor, image):
    return processor(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize(
    ("cfg", "normalization"), [*CASES, ({"input_size": (3, 13, 13), "crop_pct": 13 / 99}, "none")]
)
def test_a_processor_tells_what_it_is_made_from(cfg, normalization):
    processor = image_processor_for(cfg, normalization)
    again = image_processor_for(evaluation_of(processor))
    assert {**again.to_dict(), "do_normalize": None} == {
        **processor.to_dict(),
        "do_normalize": None,
        "image_mean": again.image_mean,
        "image_std": again.image_std,
    }
    pixels = torch.rand(3, 4, 4)
    assert torch.equal(eval_transform(again).normalize(pixels), eval_transform(processor).normalize(pixels))
    processor.rescale_factor = 1 / 127.5
    twice = eval_transform(image_processor_for(evaluation_of(processor))).normalize(pixels)
    assert torch.allclose(twice, eval_transform(processor).normalize(pixels), atol=1e-6)
    processor.resample = PIL.Image.Resampling.LANCZOS
    with pytest.raises(ValueError, match="backbones have one of nearest, bilinear, bicubic"):
        evaluation_of(processor)


@pytest.mark.parametrize(("cfg", "normalization"), CASES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_test_transform_is_the_processor(cfg, normalization, mode):
    processor = image_processor_for(cfg, normalization)
    transform = eval_transform(processor)
    for size in SIZES:
        image = noise(1, size, mode)
        ours, theirs = transform(image), official(processor, image)
        assert ours.dtype == theirs.dtype == torch.float32 and ours.is_contiguous()
        assert ours.shape == theirs.shape == cfg["input_size"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_too(mode):
    processor = image_processor_for(BACKBONE)
    image = noise(1, (40, 30), "RGB" if mode == "P" else "RGBA").convert(mode)
    torch.testing.assert_close(eval_transform(processor)(image), official(processor, image), rtol=0, atol=1e-6)


def test_transparent_grey():
    processor = image_processor_for(BACKBONE)
    image = noise(1, (40, 30), "L")
    image.info["transparency"] = 7
    torch.testing.assert_close(eval_transform(processor)(image), official(processor, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("cfg", "normalization"), CASES)
def test_reloaded_processor_is_the_same(tmp_path, cfg, normalization):
    image_processor_for(cfg, normalization).save_pretrained(tmp_path)
    reloaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(reloaded, CLIPImageProcessor)
    image = noise(2, (50, 41), "RGB")
    expected = official(image_processor_for(cfg, normalization), image)
    assert torch.equal(official(reloaded, image), expected)
    torch.testing.assert_close(eval_transform(reloaded)(image), expected, rtol=0, atol=1e-6)
    torch.manual_seed(0)
    augmented = train_transform(reloaded)(image)
    torch.manual_seed(0)
    assert torch.equal(augmented, train_transform(image_processor_for(cfg, normalization))(image))


def test_normalization():
    white = PIL.Image.new("RGB", (32, 32), "white")
    assert official(image_processor_for(BACKBONE, "none"), white).unique().tolist() == [1.0]
    expected = [(1 - mean) / std for mean, std in zip(BACKBONE["mean"], BACKBONE["std"], strict=True)]
    normalized = official(image_processor_for(BACKBONE), white)
    assert normalized[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="must be backbone or none"):
        image_processor_for(BACKBONE, "imagenet")


def test_resize_before_crop_follows_timm():
    assert image_processor_for({"input_size": (3, 224, 224), "crop_pct": 0.9}).size == {"shortest_edge": 248}
    assert image_processor_for({"input_size": (3, 224, 224)}).size == {"shortest_edge": 256}
    assert image_processor_for({"crop_pct": 1.0}).crop_size == {"height": 224, "width": 224}
    with pytest.raises(ValueError, match="crop_mode must be center or squash, got 'border'"):
        image_processor_for({"crop_mode": "border"})


@pytest.mark.parametrize(
    ("crop_mode", "interpolation"), [("center", "bicubic"), ("center", "bilinear"), ("squash", "bicubic")]
)
def test_same_as_timms_own_pipeline_but_for_rounding(crop_mode, interpolation):
    # an even margin, 40 - 36: of an odd one timm leaves the larger half at the other side
    cfg = BACKBONE | {"input_size": (3, 36, 36), "crop_mode": crop_mode, "interpolation": interpolation}
    config = timm.data.resolve_data_config(pretrained_cfg=cfg)
    image = noise(5, (50, 60), "RGB")
    theirs = timm.data.create_transform(**config)(image)
    # PIL and torch round a resampled 8-bit pixel differently by one step at most, here 1 / (255 * 0.22)
    torch.testing.assert_close(official(image_processor_for(cfg), image), theirs, rtol=0, atol=0.02)


def test_training_without_chance_is_a_resize():
    processor = image_processor_for(BACKBONE | {"crop_pct": 1.0})
    transform = train_transform(processor, crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip=0)
    for mode in ("L", "RGB"):
        image = noise(3, (45, 45), mode)
        torch.testing.assert_close(transform(image), official(processor, image), rtol=0, atol=1e-6)
        flipped = train_transform(processor, crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip=1)(image)
        assert torch.equal(flipped, transform(image).flip(-1))


def test_random_crops_have_the_size_and_shape_asked_for():
    """On an image whose red is its column and whose green is its row, a crop shows what it was cut from."""
    ramp = np.zeros((200, 200, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None], np.arange(200)[:, None]
    processor = image_processor_for({"input_size": (3, 50, 50), "interpolation": "bilinear"}, "none")
    transform = train_transform(processor, crop_scale=(0.25, 0.5), crop_ratio=(0.8, 1.25))
    areas, ratios, flips = [], [], 0
    for _ in range(300):
        pixels = transform(PIL.Image.fromarray(ramp)) * 255
        # mean difference of neighbours, times the number of pixels = extent in the image
        width, height = pixels[0].diff(dim=1).mean().item() * 50, pixels[1].diff(dim=0).mean().item() * 50
        flips += width < 0
        areas.append(abs(width) * height / 200**2)
        ratios.append(abs(width) / height)
    assert 0.23 < min(areas) < 0.28 and 0.46 < max(areas) < 0.52
    assert 0.76 < min(ratios) < 0.85 and 1.18 < max(ratios) < 1.31
    assert 110 < flips < 190


@pytest.mark.parametrize("input_size", [(3, 24, 40), (3, 40, 24), (3, 32, 32)])
def test_an_input_that_is_not_square_shows_no_border_and_no_stretched_image(input_size):
    """On an image whose red is its column and whose green is its row, both grow at the same rate."""
    ramp = np.full((240, 240, 3), 255, dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(240)[None], np.arange(240)[:, None]
    processor = image_processor_for({"input_size": input_size, "interpolation": "bilinear"}, "none")
    for image in (PIL.Image.fromarray(ramp), PIL.Image.fromarray(ramp[60:180]), PIL.Image.fromarray(ramp[:, 90:150])):
        train = train_transform(processor, crop_scale=(0.3, 0.3), crop_ratio=(1, 1), horizontal_flip=0)
        for transform in (eval_transform(processor), train):
            pixels = transform(image) * 255
            assert pixels.shape == input_size and pixels[2].min() > 254, "a border would be black"
            across, down = pixels[0].diff(dim=1).mean().item(), pixels[1].diff(dim=0).mean().item()
            assert across == pytest.approx(down, rel=0.05)


def test_random_interpolation_is_bicubic_and_others_are_named():
    """timm has it of weights that were trained with bilinear and bicubic at random."""
    processor = image_processor_for(BACKBONE | {"interpolation": "random"})
    assert processor.to_dict() == image_processor_for(BACKBONE | {"interpolation": "bicubic"}).to_dict()
    for name in ("lanczos", "box", "hamming", "cubic"):
        with pytest.raises(ValueError, match="interpolation must be one of nearest, bilinear, bicubic, random, got"):
            image_processor_for(BACKBONE | {"interpolation": name})


@pytest.mark.parametrize("size", [(401, 2), (2, 401), (700, 1), (1, 351), (1, 30)])
def test_very_long_images_are_cut_before_they_are_resized(size):
    processor = image_processor_for({"input_size": (3, 12, 12)})
    image = noise(1, size, "RGB")
    torch.testing.assert_close(eval_transform(processor)(image), official(processor, image), rtol=0, atol=0.05)


def test_a_long_image_does_not_take_gigabytes(monkeypatch):
    processor = image_processor_for({"input_size": (3, 224, 224)})
    resized = []
    resize = processor.resize
    monkeypatch.setattr(processor, "resize", lambda *args: resized.append(resize(*args)) or resized[0])
    assert eval_transform(processor)(noise(1, (10_000, 1))).shape == (3, 224, 224)
    assert resized[0].shape == (1, 256, 12_800)


def ramp_jpeg(width, height):
    """A file whose red is the column and whose green is the row, as shares of 255."""
    ramp = np.zeros((height, width, 3))
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    stream = BytesIO()
    PIL.Image.fromarray(ramp.astype(np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(640, 480), (1001, 333), (150, 700), (40, 30)])
def test_crops_of_a_jpeg_that_is_decoded_smaller_are_the_same(size):
    processor = image_processor_for({"input_size": (3, 32, 32), "interpolation": "bilinear"}, "none")
    transform = train_transform(processor)
    data, smaller = ramp_jpeg(*size), 0
    for seed in range(60):
        crops = []
        for decoded in (False, True):
            image = PIL.Image.open(BytesIO(data))
            if decoded:
                image.load()
            torch.manual_seed(seed)
            crops.append(transform(image))
            smaller += image.size != size
        # borders move by half a pixel of 32 at most, and a JPEG has an error of its own
        torch.testing.assert_close(*crops, rtol=0, atol=0.03)
    assert smaller == 0 if size == (40, 30) else smaller > 10


def test_a_jpeg_is_never_decoded_smaller_than_the_crop():
    processor = image_processor_for({"input_size": (3, 32, 32)})
    transform = train_transform(processor, crop_scale=(1, 1), crop_ratio=(1, 1))
    for side, decoded in ((63, 63), (64, 32), (127, 64), (128, 32), (255, 64), (256, 32), (4096, 512)):
        image = PIL.Image.open(BytesIO(ramp_jpeg(side, side)))
        assert transform(image).shape == (3, 32, 32) and image.size == (decoded, decoded)
