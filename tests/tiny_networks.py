"""Networks of timm that people have, as tiny random ones of the same architecture."""

from typing import Any

from cdl_hf.models import PretrainedBackbone, load_backbone

_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
_STAGES = (8, 16, 24, 32)

# Those whose blocks can be prompted; what timm's own head reads of them, if heads here do not read the class token.
PROMPTED: dict[str, tuple[dict[str, Any], str]] = {
    "vit_base_patch16_224": (_VIT, "class token"),
    "vit_base_patch16_clip_224": (_VIT, "class token"),
    "vit_base_patch14_dinov2": (_VIT, "class token"),
    "vit_small_patch14_reg4_dinov2": (_VIT, "class token"),
    "deit3_small_patch16_224": (_VIT, "class token"),
    "vit_base_patch16_siglip_224": (_VIT, "attention pooling"),
    "vit_so400m_patch14_siglip_224": (_VIT, "attention pooling"),
    "vit_base_patch16_siglip_gap_224": (_VIT, "mean"),
    "vit_wee_patch16_reg1_gap_256": (_VIT, "mean"),
    "aimv2_large_patch14_224": (_VIT, "mean"),
    "vit_small_patch16_dinov3": (_VIT, "mean"),
    "vit_base_patch16_dinov3": (_VIT, "mean"),
    "vit_small_plus_patch16_dinov3": (_VIT, "mean"),
    "eva02_base_patch14_224": (_VIT, "mean"),
    "vit_base_patch16_rope_224": (_VIT, "class token"),
    "vit_pe_core_base_patch16_224": (_VIT, "attention pooling"),
}
FEATURES_ONLY: dict[str, dict[str, Any]] = {
    "vit_dwee_patch16_reg1_gap_256": _VIT,  # differential attention
    "deit_small_distilled_patch16_224": _VIT,
    "beit_base_patch16_224": _VIT,
    "tiny_vit_5m_224": {
        **{"img_size": 32, "embed_dims": _STAGES, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
        "window_sizes": (2, 2, 2, 2),
    },
    "mobilenetv4_conv_small": {"img_size": 32},
    "convnext_tiny": {"img_size": 32, "depths": (1, 1, 1, 1), "dims": _STAGES},
    "resnet50": {"img_size": 32, "layers": (1, 1, 1, 1), "channels": _STAGES},
    "fastvit_t8": {"img_size": 64, "layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)},
    "swin_tiny_patch4_window7_224": {
        **{"img_size": 32, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}
    },
}
NAMES = [*PROMPTED, *FEATURES_ONLY]


def tiny_network(name: str) -> PretrainedBackbone:
    args = PROMPTED[name][0] if name in PROMPTED else FEATURES_ONLY[name]
    return load_backbone(name, pretrained=False, **args)
