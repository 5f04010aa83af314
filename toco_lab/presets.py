"""The numbers of each preset: what `Config.preset(name)` starts from.

`PRESETS` says of each: the command, what it needs, how long it takes, and the mIoU to expect (val, percent; with MS +
CRF: multi-scale inference and dense CRF), where the authors published it.
"""

from typing import Any

# the tag names the weights: a bare timm name may come to mean others
DEIT_B = "deit_base_patch16_224.fb_in1k"  # ImageNet-1k
VIT_B = "vit_base_patch16_224.augreg_in21k_ft_in1k"  # ImageNet-21k, then 1k

# beside any preset: the method without its contrast and segmentation losses; the two classification losses are left
BASELINE = {"w_ptc": 0.0, "w_ctc": 0.0, "w_seg": 0.0, "w_reg": 0.0}

_VOC = {"dataset": "voc", "data_root": "data/VOC2012", "num_classes": 20, "steps": 20000, "batch_size": 4}

_COCO = {
    "dataset": "coco",
    "data_root": "data/COCO2014",
    "train_split": "train",
    "num_classes": 80,
    "steps": 80000,
    "batch_size": 8,
    "high_threshold": 0.65,
    "background_threshold": 0.45,
    "seg_start_step": 8000,
    "contrast_start_step": 12000,
    "aux_label_steps": 12000,
    "ctc_temperature": 1.0,
    "eval_fusion": "coco",
}

# a strong small encoder and few images: random heads would pull its last tokens into one vector within 30 steps
_SMALL_DATA = {
    "backbone": "vit_small_patch14_dinov2.lvd142m", "image_size": 518,
    "crop_size": 224, "view2_size": 224, "local_crop_size": 56, "scale_range": (0.45, 0.9),
    "decoder_width": 256, "head_hidden": 512, "head_out": 256,
    "steps": 1200, "batch_size": 16, "learning_rate": 1e-5, "head_lr_factor": 100.0, "warmup_steps": 50,
    "encoder_start_step": 200, "contrast_start_step": 200, "seg_start_step": 400,
    "eval_cam_size": 336, "eval_seg_scales": (0.6, 0.9), "checkpoint_every": 200,
}  # fmt: skip

# few images, two cores: a linear probe first, then the last four blocks, slowly; see results/studies/photographs
_FEW_IMAGES = {
    "backbone": "vit_base_patch16_clip_quickgelu_224.openai", "image_size": 224,
    "depth": 11, "aux_layer": -2,  # of the twelfth block the CAM of some classes lies on their background
    "cam_scales": (1.0, 0.5), "probe_heads": True, "frozen_blocks": 7,
    "crop_size": 112, "view2_size": 112, "local_crop_size": 32, "scale_range": (0.25, 0.45),
    "steps": 240, "batch_size": 8, "learning_rate": 1e-4, "head_lr_factor": 10.0, "warmup_steps": 10,
    "contrast_start_step": 24, "seg_start_step": 24,
    "w_ptc": 0.5, "w_seg": 0.3, "eval_cam_size": 224, "eval_seg_scales": (0.6,), "checkpoint_every": 60,
}  # fmt: skip

_TOY = {
    "dataset": "toy", "data_root": "", "train_split": "train", "num_classes": 6,
    "train_images": 1000, "val_images": 100,
    "crop_size": 96, "scale_range": (1.0, 1.0), "jitter_probability": 0.0, "grey_probability": 0.0,
    "blur_probability": (0.0, 0.0, 0.0), "solarise_probability": 0.0, "view2_size": 64, "num_workers": 0,
    "normalisation": "imagenet", "backbone": "vit_tiny_patch16_224", "weights": "data/toy/vit_toy.safetensors",
    "image_size": 96, "patch_size": 8, "embed_dim": 64, "depth": 8, "num_heads": 2,
    "decoder_width": 64, "head_hidden": 128, "head_bottleneck": 64, "head_out": 128,
    "cam_scales": (1.0, 0.5), "num_local_crops": 8, "local_crop_size": 32, "crop_min_content": 0.5,
    "par_dilations": (1, 2, 4, 8), "par_iterations": 5,
    # PTC and the segmentation loss weigh more than on VOC: a run has 160 steps, not 20,000
    "w_ptc": 1.5, "w_ctc": 0.2, "w_seg": 1.0, "w_reg": 0.05, "seg_start_step": 20, "aux_label_steps": 160,
    "steps": 160, "batch_size": 8, "learning_rate": 8e-4, "warmup_steps": 20,
    "eval_cam_size": 0, "eval_seg_scales": (1.0,), "log_every": 10, "checkpoint_every": 40, "token_snapshots": 21,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # python -m toco_lab train toy
    # Toy scenes and their small pretrained ViT, both part of the project: two CPU cores, about a minute. What each part
    # of the method gives there: docs/results.md.
    "toy": _TOY,
    # python -m toco_lab train toy_parts
    # Toy animals with a telling head and a coat that two kinds share: a CAM has something to complete; as long.
    "toy_parts": _TOY | {"toy_world": "parts", "local_crop_size": 16},
    # python -m toco_lab train smoke
    # The toy preset in seconds with random weights: for tests and a first look. Its scores mean nothing.
    "smoke": _TOY
    | {
        "pretrained": False, "weights": "", "embed_dim": 24, "depth": 4, "num_heads": 2,
        "decoder_width": 16, "head_hidden": 32, "head_bottleneck": 16, "head_out": 32,
        "num_local_crops": 2, "par_iterations": 2, "train_images": 16, "val_images": 4,
        "steps": 4, "batch_size": 2, "warmup_steps": 1, "seg_start_step": 1, "aux_label_steps": 2,
        "log_every": 1, "checkpoint_every": 2, "token_snapshots": 3,
    },
    # python -m toco_lab train toy_tissue
    # Cells on stained tissue, one kind the class, two images in five without it; three times as long as toy, at twice
    # its rate, or labels are not learnt. Why no ReLU: docs/domains.md. Chosen by single runs of seed 0.
    "toy_tissue": _TOY
    | {
        "toy_world": "tissue", "num_classes": 1, "local_crop_size": 16, "crop_min_content": 0.3,
        "cam_relu": False, "low_threshold": 0.6, "high_threshold": 0.85, "background_threshold": 0.6, "aux_layer": -2,
        "learning_rate": 1.6e-3, "steps": 480, "aux_label_steps": 480, "contrast_start_step": 160,
        "seg_start_step": 240, "checkpoint_every": 120,
    },
    # python -m toco_lab train toy_land
    # Fields, orchards, roads and roofs from above, which touch; as long as toy. Crops as narrow as a road.
    "toy_land": _TOY
    | {"toy_world": "land", "num_classes": 4, "local_crop_size": 16, "crop_min_content": 0.3},
    # python -m toco_lab train voc_deit_b --data-root path/to/VOC2012
    # PASCAL VOC 2012, ImageNet-1k weights: 3.6 h on two A100 in the paper; 68.1, with MS + CRF 69.8.
    "voc_deit_b": _VOC | {"backbone": DEIT_B},
    # python -m toco_lab train voc_vit_b --data-root path/to/VOC2012
    # The same with ImageNet-21k weights, as long: 69.2, with MS + CRF 71.1. In the authors' log the CAM reaches
    # 72.3 and the auxiliary CAM 68.4.
    "voc_vit_b": _VOC | {"backbone": VIT_B},
    # python -m toco_lab train voc_vit_s --data-root path/to/VOC2012
    # A small DINOv2 at 224 pixels on some hundred images: one small GPU, or two patient cores. Heads first, then a slow
    # encoder; no number of it was tuned, and no score of it is known: `voc_clip` was measured.
    "voc_vit_s": _VOC | _SMALL_DATA,
    # python -m toco_lab train voc_clip --data-root path/to/VOC2012
    # Eleven blocks of CLIP ViT-B/16 on some hundred images, crops of 112 pixels: minutes on two cores. With 506 of VOC
    # the final CAM reaches 47, with PTC alone or all of ToCo 49, refined 51: results/studies/photographs. With 315 of
    # MSRC 64 and 71, refined 75, and a decoder 61: photographs_msrc.
    "voc_clip": _VOC | _FEW_IMAGES,
    # python -m toco_lab train coco_deit_b --data-root path/to/COCO2014
    # MS COCO 2014, ImageNet-1k weights: 27 h on four A100 in the paper; with MS + CRF 41.3.
    "coco_deit_b": _COCO | {"backbone": DEIT_B},
    # python -m toco_lab train coco_vit_b --data-root path/to/COCO2014
    # The same with ImageNet-21k weights, as long: with MS + CRF 42.2.
    "coco_vit_b": _COCO | {"backbone": VIT_B},
    # python -m toco_lab train folder --data-root path/to/folder
    # Your own images: VOC's numbers, so as long and as much memory as VOC; classes and lists come from the folder.
    "folder": _VOC
    | {
        "dataset": "folder", "data_root": "", "train_split": "train", "label_source": "auto", "num_classes": 0,
        "backbone": DEIT_B,
    },
}  # fmt: skip
