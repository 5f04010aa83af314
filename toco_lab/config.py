"""The one Config: every number a run depends on, with strict overrides and checks.

A field name is also the command-line option, the notebook override, the ablation axis and the column of the runs table.
Fields marked "quirk" have a `released` value (what the authors' code does) and a sound one (the default); see
`Config.released`.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from toco_lab.fields import check_fields, check_one, opt, shown
from toco_lab.files import did_you_mean
from toco_lab.methods import METHODS, silent, unread
from toco_lab.presets import PRESETS
from toco_lab.relations import VIT_SIZES, backbone_kind, check_relations

if TYPE_CHECKING:
    import pandas as pd

# far above what any machine can train; a larger number is a slip, and would only exhaust memory or time
MOST_PIXELS = 16384  # of a side
MOST_CHANNELS = 65536  # of a layer
MOST_STEPS = 10**9  # of a run

FORMER_VIEW2_SIZE = 224  # default of `view2_size` in runs made before it was None; their digests leave it out

IGNORE_INDEX: int = 255  # label value that no loss and no metric counts (VOC's border, unsure pseudo labels)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on. Flat on purpose; made by `Config.preset(name).replace(field=value)`."""

    # --- data ---------------------------------------------------------------------------------------------------
    preset_name: str = opt(
        "",
        "preset this config started from (a label for folders and tables)",
        result=False,
        matches=(r"[^/\\\0]{0,100}", "a short name that a folder can have, without / and \\"),
    )
    dataset: Literal["toy", "voc", "coco", "folder"] = opt(
        "voc", "which reader reads the images and masks; `folder` is any folder of images, see data/README.md"
    )
    data_root: str = opt("data/VOC2012", "folder of the data set (VOC: the one that holds JPEGImages)", result=False)
    train_split: str = opt("train_aug", "name of the training list (toy: a stream of scenes)", filled=True)
    val_split: str = opt("val", "name of the list that is evaluated", filled=True)
    label_source: str = opt(
        "masks",
        "image labels from `masks`, `xml`, `annotations` (COCO's json), or a CSV, JSON or .npy label file; "
        "`auto` (folder): its labels.csv or labels.json, else the masks, else the XML files",
        filled=True,
    )
    num_classes: int = opt(
        20,
        "foreground classes C; background is class 0 and not counted; 0 (folder): as many as the folder names",
        within=(0, 254),
        because="255 marks pixels that do not count",
    )
    classes: tuple[str, ...] | None = opt(
        None, "class names of a folder; None = read from it when a run starts", filled=True, distinct=True
    )
    crowds: Literal["class", "ignore"] = opt(
        "class", "crowd regions in masks made from COCO's json: painted as their class, or as 255 (not counted)"
    )
    train_images: int = opt(
        0, "use only the first n training images (toy: size of the stream); 0 = all", at_least=0, up_to=10**9
    )
    train_on_empty: bool = opt(
        True,
        "training images without any class take part, as background alone; False leaves them out, for which every "
        "label is read when training starts",
    )
    val_images: int = opt(0, "evaluate only the first n images; 0 = all", at_least=0, up_to=10**9)
    toy_world: Literal["shapes", "parts", "same_class", "tissue", "land"] = opt(
        "shapes",
        "toy: textured shapes of unlike classes, or long animals with a telling head and a coat that two kinds share, "
        "or shapes of one class a scene, which often touch, or cells of which one kind is the class (preset "
        "toy_tissue), or fields, orchards, roads and roofs from above (preset toy_land)",
    )
    toy_objects: int = opt(0, "toy world `parts`: animals a scene shows; 0 = one to three", within=(0, 3))
    crop_size: int = opt(448, "side of the square training crop, in pixels", at_least=1, up_to=MOST_PIXELS)
    scale_range: tuple[float, ...] = opt(
        (0.5, 2.0),
        "random resize before the crop: smallest and largest factor",
        above=0,
        up_to=16,
        length=2,
        increasing=True,
    )
    padding: Literal["mean", "black"] = opt(
        "mean",
        "what surrounds an image smaller than the crop: mean colour (0 after normalisation), or black",
        quirk="black",
    )
    colours_on: Literal["image", "padded_crop"] = opt(
        "image",
        "what colour changes act on: the image, so that padding keeps its colour, weighs nothing in the contrast's "
        "mean and is not blurred into the image; or the crop with its padding, in whole grey levels as PIL has them",
        quirk="padded_crop",
    )
    flip_probability: float = opt(0.5, "probability of a horizontal flip of each view", within=(0, 1))
    turns: bool = opt(
        False,
        "each view is also turned by 0 to 3 quarters and, in half of the cases, mirrored top to bottom: for images in "
        "which nothing is up (tissue, aerial)",
    )
    jitter: tuple[float, ...] = opt(
        (0.4, 0.4, 0.2, 0.1), "brightness, contrast, saturation, hue jitter of the views", at_least=0, length=4
    )
    jitter_probability: float = opt(0.8, "probability of the colour jitter", within=(0, 1))
    grey_probability: float = opt(0.2, "probability that a view is turned grey", within=(0, 1))
    blur_probability: tuple[float, ...] = opt(
        (1.0, 0.1, 0.5), "Gaussian blur of global view 1, view 2, local view", within=(0, 1), length=3
    )
    solarise_probability: float = opt(0.2, "probability that global view 2 is solarised", within=(0, 1))
    view2_scale: tuple[float, ...] = opt(
        (0.4, 1.0),
        "area of the second global view as a share of the image",
        above=0,
        at_most=1,
        length=2,
        increasing=True,
    )
    view2_size: int | None = opt(
        None,
        "side of the second global view, in pixels; None = the side of the crop",
        at_least=1,
        up_to=MOST_PIXELS,
    )
    normalisation: Literal["backbone", "imagenet"] = opt(
        "backbone", "image mean and standard deviation: of the backbone's own weights, or ImageNet's", quirk="imagenet"
    )
    flip_views_independently: bool = opt(
        False, "main and local view flip apart, so the region mask is mirrored against the crops", quirk=True
    )
    flip_valid_box: bool = opt(True, "the valid box is mirrored together with its image", quirk=False)
    mask_source: str = opt(
        "", "supervised: masks to learn from: empty = the true ones, or a folder OUT/<kind> that `pseudo_labels` wrote"
    )
    masks_for: int = opt(
        0,
        "toco, supervised: so many training images, drawn by seed and class by class, give their true mask; 0 = none "
        "(toco) or all (supervised)",
        at_least=0,
        up_to=10**9,
    )
    num_workers: int = opt(2, "loader processes; 0 loads in the training process", result=False, within=(0, 1024))

    # --- model --------------------------------------------------------------------------------------------------
    method: Literal["toco", "tscam", "getam", "afa", "mct", "mct_plus", "supervised"] = opt(
        "toco",
        "what is trained: ToCo, a method that it is compared with (docs/peers.md), or a network that learns from masks "
        "(docs/students.md, docs/few_masks.md)",
    )
    backbone: str = opt(
        "deit_base_patch16_224",
        "timm model name: a plain ViT or DeiT, a Swin, ResNet or ConvNeXt; hf-hub:OWNER/NAME or local-dir:FOLDER",
        filled=True,
    )
    weights_tag: str = opt(
        "", "timm's tag of the pretrained weights, fb_in1k or augreg_in21k, say; empty = the backbone's default"
    )
    backbone_args: str = opt(
        "", 'further arguments of timm.create_model as JSON: {"depths": [2, 2, 2, 2]}, or {"patch_size": 2} for a Swin'
    )
    output_stride: int | None = opt(
        None, "pixels per final token of a ResNet or ConvNeXt, by dilation: 8, 16 or 32; None = 16", one_of=(8, 16, 32)
    )
    pretrained: bool = opt(True, "start from pretrained weights (downloaded by timm unless `weights` names a file)")
    weights: str = opt("", "local weights file (.safetensors, .pth) for the backbone; empty = timm downloads them")
    # sizes of plain ViTs: `replace` drops them for another backbone, which keeps its own
    image_size: int | None = opt(
        None, "ViT: side the position grid was made for; None = the backbone's own", at_least=1, up_to=MOST_PIXELS
    )
    patch_size: int | None = opt(None, "ViT: patch side in pixels; None = the backbone's own", at_least=1, up_to=1024)
    embed_dim: int | None = opt(None, "ViT: token width D; None = the backbone's own", at_least=1, up_to=MOST_CHANNELS)
    depth: int | None = opt(
        None,
        "ViT: number of blocks, of pretrained weights the first ones; None = the backbone's own",
        at_least=1,
        up_to=1000,
    )
    num_heads: int | None = opt(None, "ViT: attention heads; None = the backbone's own", at_least=1, up_to=1024)
    mlp_ratio: float | None = opt(
        None, "ViT: hidden width of a block's MLP over D; None = the backbone's own", above=0, up_to=64
    )
    pos_embed_antialias: bool = opt(False, "antialias when the frozen position grid is resampled")
    aux_layer: int = opt(-3, "block whose raw output feeds the auxiliary classifier (python index)")
    pooling: Literal["max", "average", "max_and_class"] = opt(
        "max",
        "global pooling of the tokens before each classifier: maximum per channel (ToCo), average, or the mean of that "
        "maximum and the class token (final classifier alone)",
    )
    getam_start: int | None = opt(
        None, "GETAM: first block whose map counts, from 0; None = the upper half", at_least=0, up_to=1000
    )
    decoder_width: int = opt(512, "channels of the LargeFOV decoder", at_least=1, up_to=MOST_CHANNELS)
    decoder_dilation: int = opt(5, "dilation of its 3x3 convolutions", at_least=1, up_to=1024)
    head_hidden: int = opt(2048, "hidden width of the projection head of CTC", at_least=1, up_to=MOST_CHANNELS)
    head_bottleneck: int = opt(256, "bottleneck width of the projection head", at_least=1, up_to=MOST_CHANNELS)
    head_out: int = opt(1024, "output width of the projection head", at_least=1, up_to=MOST_CHANNELS)
    anti_smoothing: Literal["none", "attn_scale", "feat_scale"] = opt(
        "none", "rescale the high frequencies of attention (AttnScale) or of its output (FeatScale), arXiv 2203.05962"
    )
    teacher: Literal["ema", "none"] = opt(
        "ema", "targets of CTC: of the EMA head, or (none) the student's own projections, with gradient through both"
    )
    teacher_momentum: float = opt(0.9, "EMA momentum m of the teacher head: t <- m t + (1 - m) s", within=(0, 1))

    # --- CAM, pseudo labels, crops ------------------------------------------------------------------------------
    cam_scales: tuple[float, ...] = opt(
        (1.0, 0.5, 1.5), "scales of the multi-scale CAM; 1 always runs, and first", above=0, up_to=16, most=100
    )
    cam_relu: bool = opt(
        True,
        "set what is negative in a CAM to 0 before its scales are summed, as published. With one or two classes and "
        "maximum pooling every token may be negative, and nothing is left: False keeps their order",
    )
    low_threshold: float = opt(0.25, "CAM score at or below this is background", within=(0, 1))
    high_threshold: float = opt(0.70, "CAM score above this is foreground", within=(0, 1))
    high_threshold_end: tuple[float, ...] | None = opt(
        None,
        "DuPL's falling threshold: the upper threshold of the pseudo labels at the last step, one for all classes or "
        "one for each; None = it stays",
        within=(0, 1),
    )
    threshold_fall_start_step: int | None = opt(
        None, "first step of that fall; None = seg_start_step", at_least=0, up_to=MOST_STEPS
    )
    background_threshold: float = opt(
        0.50, "CAM score at or below this is background when a CAM is evaluated", within=(0, 1)
    )
    par_dilations: tuple[int, ...] = opt(
        (1, 2, 4, 8, 12, 24), "neighbour distances of PAR, in half-size pixels", at_least=1, up_to=1024, most=100
    )
    par_iterations: int = opt(10, "iterations of PAR", at_least=0, up_to=10_000)
    refine: bool = opt(True, "refine the pseudo label by PAR (False: thresholds only)")
    aux_label_steps: int = opt(
        0, "the segmentation pseudo label comes from the auxiliary CAM before this step", at_least=0, up_to=MOST_STEPS
    )
    noise_start_step: int | None = opt(
        None,
        "DuPL's noise filter: first step from which foreground pixels with outlying losses are ignored; None = never",
        at_least=0,
        up_to=MOST_STEPS,
    )
    noise_posterior: float = opt(
        0.95, "a pixel is noise where it belongs to the upper heap of losses with a larger probability", within=(0, 1)
    )
    noise_gap: float = opt(1.0, "an image is filtered if its two heaps of losses are further apart", at_least=0)
    noise_min_pixels: int = opt(
        1000,
        "an image is filtered if more foreground pixels than these have a loss above 0.1 (0.5 % of a crop of 448)",
        at_least=0,
        up_to=MOST_PIXELS**2,
    )
    num_local_crops: int = opt(8, "local crops per image", at_least=1, up_to=1024)
    local_crop_size: int = opt(96, "side of a local crop, in pixels (even)", at_least=2, up_to=MOST_PIXELS)
    crop_candidates: Literal["uncertain", "not_foreground"] = opt(
        "not_foreground",
        "where centres of local crops may lie: uncertain regions and background (paper), or uncertain regions alone",
        quirk="not_foreground",
        before="uncertain",
    )
    crop_min_content: float = opt(
        0.2, "a local crop that shows more content than this is a positive of CTC", within=(0, 1)
    )
    crop_max_negative: float = opt(
        0.05, "a local crop that shows this much content or less is a negative (ctc_between `ignore`)", within=(0, 1)
    )
    ctc_between: Literal["ignore", "negative"] = opt(
        "ignore",
        "local crops that are no clean positive (uncertain centre, content) and no clean negative (background centre, "
        "next to no content): left out of CTC, or (negative) flagged by content alone, as positive or negative",
        quirk="negative",
        before="negative",
    )
    crop_content: Literal["area", "double_foreground"] = opt(
        "area",
        "content of a crop: share of non-background pixels, or the same with foreground counted twice",
        quirk="double_foreground",
    )
    crops_in_valid_box: bool = opt(True, "keep local crops inside the valid box", quirk=False)

    afa_labels: Literal["final", "aux"] = opt(
        "final", "AFA: labels come from the CAM of the final tokens (released), or from that of block `aux_layer`"
    )
    afa_walk_start_step: int | None = opt(
        None,
        "AFA: first step in which the segmentation's label has walked along the affinity; None = 3 * seg_start_step",
        at_least=0,
        up_to=MOST_STEPS,
    )
    afa_radius: int | None = opt(
        None,
        "affinity: tokens further apart than this in rows or columns are not compared; None = a quarter of the crop",
        at_least=1,
        up_to=MOST_PIXELS,
    )
    afa_scaled: bool = opt(
        False, "affinity: attention scores are divided by the root of a head's channels, as attention does"
    )

    # --- losses -------------------------------------------------------------------------------------------------
    late_segmentation: bool = opt(
        False, "the segmentation losses join one step after seg_start_step (`n_iter <= 2000`)", quirk=True
    )
    w_cls: float = opt(1.0, "weight of the classification loss on the final tokens", at_least=0)
    w_cls_aux: float = opt(1.0, "weight of the classification loss on the auxiliary tokens", at_least=0)
    w_ptc: float = opt(0.2, "weight of patch token contrast", at_least=0)
    w_ctc: float = opt(0.5, "weight of class token contrast", at_least=0)
    w_seg: float = opt(0.1, "weight of the segmentation loss", at_least=0)
    w_reg: float = opt(0.05, "weight of the regularised (dense CRF energy) loss", at_least=0)
    w_aff: float = opt(
        0.0,
        "weight of AFA's affinity loss, which joins with the segmentation losses; in ToCo it is an addition",
        at_least=0,
    )
    w_distil: float = opt(
        0.0,
        "weight of regressing the final tokens' CAM on the auxiliary CAM: an alternative to PTC, not part of ToCo",
        at_least=0,
    )
    contrast_start_step: int = opt(
        0, "first step with PTC, CTC and the regression on the auxiliary CAM", at_least=0, up_to=MOST_STEPS
    )
    ctc_start_step: int = opt(
        0, "first step with CTC, where that is later than contrast_start_step", at_least=0, up_to=MOST_STEPS
    )
    ctc_stop_step: int = opt(0, "first step without CTC again; 0 = CTC stays to the end", at_least=0, up_to=MOST_STEPS)
    seg_start_step: int = opt(
        2000, "first step with the segmentation and regularised losses", at_least=0, up_to=MOST_STEPS
    )
    ptc_similarity: Literal["absolute", "raw"] = opt("absolute", "cosine similarity of PTC: |cos| or cos")
    ptc_box_units: Literal["tokens", "pixels"] = opt(
        "tokens", "units of the valid box on the token grid (pixels: most padded images drop out)", quirk="pixels"
    )
    ctc_temperature: float = opt(0.5, "temperature of class token contrast", above=0)
    ctc_negative_only_term: bool = opt(
        False, "add the term without positives once per image, as the released loop does", quirk=True
    )
    reg_scale_factor: float = opt(1e-7, "the energy's own factor, inside w_reg", at_least=0)
    reg_sigma_rgb: float = opt(15.0, "colour width of the energy, in grey levels 0..255", above=0)
    reg_sigma_xy: float = opt(100.0, "spatial width of the energy, in full-size pixels", above=0)
    reg_scale: float = opt(0.5, "size at which the energy is taken, relative to the image", above=0, up_to=4)
    reg_gate: Literal["released", "exact"] = opt(
        "released",
        "gradient of the energy: its confidence gate held constant (as in gated-CRF losses), or the exact one",
    )

    # --- losses and maps of the methods that ToCo is compared with ------------------------------------------------
    mct_layers: int | None = opt(
        None,
        "mct, mct_plus: last blocks whose class-token attention makes the map; None = 3 (mct, summed), all (mct_plus, "
        "averaged)",
        at_least=1,
        up_to=1000,
    )
    mct_patch_weight: float = opt(
        1.0, "mct, mct_plus: weight of the classification loss on the patch tokens", at_least=0
    )
    mct_contrast_weight: float = opt(1.0, "mct_plus: weight of the contrast between class tokens", at_least=0)
    mct_contrast_layers: int = opt(
        12,
        "mct_plus: last blocks whose class tokens are contrasted, at most as many as there are",
        at_least=1,
        up_to=1000,
    )
    mct_decay: float = opt(
        0.996, "mct_plus: ranked pooling weighs the k-th largest value of a class map by its k-th power", within=(0, 1)
    )
    mct_head_weights: bool = opt(
        False, "mct: WeakTr's learned weight of each attention head in place of the plain sums"
    )
    mct_map_weight: float = opt(1.0, "mct: weight of the classification loss that teaches mct_head_weights", at_least=0)

    # --- second stage ---------------------------------------------------------------------------------------------
    soft_teacher: str = opt(
        "", "supervised: folder of a run whose segmentation of the same view is learnt beside the masks (w_soft)"
    )
    soft_temperature: float = opt(2.0, "supervised: temperature t of both segmentations in that loss", above=0)
    w_soft: float = opt(
        0.0, "supervised: weight of that loss, t^2 times the divergence of the student from the teacher", at_least=0
    )

    # --- a few masks --------------------------------------------------------------------------------------------
    w_consistency: float = opt(
        0.0,
        "supervised with masks_for: weight of FixMatch's loss on images without a mask, whose confident prediction on "
        "one view teaches another view in other colours, with rectangles of other images",
        at_least=0,
    )
    consistency_threshold: float = opt(
        0.95, "supervised: a prediction counts in that loss where its probability is above this", within=(0, 1)
    )
    consistency_jitter: float = opt(
        0.8, "supervised: probability of the colour jitter of the view that is taught (jitter)", within=(0, 1)
    )

    # --- clips --------------------------------------------------------------------------------------------------
    train_on_clips: bool = opt(
        False,
        "toy: training images are frames of toy clips, in a batch two neighbouring ones after the other, with the "
        "image label of their clip and the same views",
    )
    w_temporal: float = opt(
        0.0,
        "weight of the distance between the segmentations of both frames along the optical flow, from seg_start_step",
        at_least=0,
    )
    clip_flow: Literal["ground_truth", "estimated"] = opt(
        "ground_truth", "flow of that loss: of the toy world itself, or by block matching where there and back agree"
    )
    ptc_across_frames: bool = opt(False, "PTC also compares the tokens of both frames with each other")

    # --- optimisation -------------------------------------------------------------------------------------------
    steps: int = opt(20000, "optimiser steps T", at_least=1, up_to=MOST_STEPS)
    batch_size: int = opt(4, "effective batch, in images", at_least=1, up_to=1_000_000)
    accumulate: int = opt(
        1,
        "micro-batches the batch is split into: one after the other, or side by side in several processes",
        at_least=1,
        up_to=1_000_000,
    )
    learning_rate: float = opt(6e-5, "peak learning rate of the encoder", above=0)
    head_lr_factor: float = opt(10.0, "factor on it for classifiers, projection head and decoder", at_least=0)
    weight_decay: float = opt(0.01, "decoupled weight decay of AdamW, all parameters", at_least=0)
    betas: tuple[float, ...] = opt((0.9, 0.999), "AdamW betas", at_least=0, below=1, length=2)
    warmup_steps: int = opt(1500, "linear warm-up steps W", at_least=0, up_to=MOST_STEPS)
    encoder_start_step: int = opt(
        0,
        "first step in which the encoder learns, with a warm-up of its own; before it heads and decoder learn alone, "
        "so that no random head pulls at a pretrained encoder. At `steps` or above: never (linear probing)",
        at_least=0,
        up_to=MOST_STEPS,
    )
    probe_heads: bool = opt(
        False,
        "begin with classifiers fitted to the pretrained tokens of all training images (linear probing), not random "
        "ones: they know the classes before the encoder moves",
    )
    frozen_blocks: int = opt(
        0, "ViT: the first n blocks, and what lies before them, keep their weights", at_least=0, up_to=1000
    )
    warmup_ratio: float = opt(
        1e-6, "first learning rate as a share of the peak (the released code calls it an lr)", within=(0, 1)
    )
    poly_power: float = opt(0.9, "power of the polynomial decay", at_least=0)
    schedule: Literal["continuous", "drop"] = opt(
        "continuous", "decay counted from the end of warm-up, or from step 0 (a drop when warm-up ends)", quirk="drop"
    )
    seed: int = opt(0, "seed of the initial weights, data order, augmentation and crops", at_least=0)
    precision: Literal["fp32", "bf16", "fp16"] = opt("fp32", "arithmetic of the encoder; losses stay in fp32")
    checkpoint_blocks: bool = opt(
        False,
        "keep no activations inside the encoder's blocks, compute them again: less memory, more time",
        result=False,
    )
    compile_blocks: bool = opt(
        False, "torch.compile the encoder's blocks: the first steps take minutes; rounds differently"
    )
    device: str = opt("auto", "auto (cuda if there is one), cpu, cuda, cuda:1 ...", result=False, filled=True)

    # --- evaluation and bookkeeping -----------------------------------------------------------------------------
    eval_cam_size: int = opt(
        448, "side images are resized to for CAM evaluation; 0 = native size", at_least=0, up_to=MOST_PIXELS
    )
    eval_seg_scales: tuple[float, ...] = opt(
        (1.0, 1.25, 1.5), "scales of multi-scale segmentation inference", above=0, up_to=16, most=100
    )
    eval_seg_flip: bool = opt(True, "each scale of segmentation inference also runs mirrored")
    eval_fusion: Literal["voc", "coco"] = opt("voc", "voc: sum over flip, max over scales; coco: the other way round")
    eval_refine: Literal["par", "pamr", "crf", "patch", "walk", "patch+par", "walk+par"] = opt(
        "par",
        "what refines the CAM of target `cam_refined` and of refined pseudo labels: PAR, PAMR, dense CRF, attention "
        "between patches, or the walk along a learned affinity (w_aff); training refines by PAR",
    )
    threshold_images: int = opt(
        100,
        "training images with masks on which a second background threshold of each CAM is chosen when it is "
        "evaluated; 0 = no second score",
        at_least=0,
        up_to=10**9,
    )
    miou_over: Literal["present", "all"] = opt("present", "mIoU over classes in the ground truth, or over all classes")
    eval_crf: bool = opt(False, "also evaluate segmentation after the dense CRF")
    log_every: int = opt(20, "steps between rows of metrics.csv", result=False, at_least=1, up_to=MOST_STEPS)
    val_every: int = opt(
        0, "steps between validations during training; 0 = only at the end", result=False, at_least=0, up_to=MOST_STEPS
    )
    checkpoint_every: int = opt(500, "steps between checkpoints", result=False, at_least=1, up_to=MOST_STEPS)
    token_snapshots: int = opt(
        0,
        "snapshots of the tokens of the probe images, from before training to the end; 0 = none",
        result=False,
        at_least=0,
        up_to=10_000,
    )
    probe_images: int = opt(
        2, "first so many images of the validation list, whose tokens are kept", result=False, at_least=1, up_to=10_000
    )

    def __post_init__(self) -> None:
        """Convert and check every value; each message names the values that do not fit."""
        check_fields(self)
        check_relations(self)

    @classmethod
    def preset(cls, name: str) -> Self:
        """The named preset, see `PRESETS`. Raises ValueError with the nearest name for an unknown one."""
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(
                f"unknown preset {shown(name)}{did_you_mean(name, PRESETS)}; there are: {', '.join(PRESETS)}"
            )
        return cls(preset_name=name, **PRESETS[name])

    def replace(self, /, **changes: Any) -> Self:
        """A copy with some fields changed.

        Another method brings its own options: those that it does not read are switched off, and those that the former
        one did not read are the preset's again, unless they are among the changes.

        Another backbone brings its own sizes and weights. Unless they are among the changes, one that is no plain ViT
        drops the sizes of plain ViTs and the local weights file, and one whose name has a tag drops `weights_tag`. A
        new `weights_tag` alone replaces the tag in the backbone's name.

        Raises:
            ValueError: For an unknown field (the closest name is in the message) or a value of the wrong type. Only
                int to float and list to tuple are converted.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in names:
                raise ValueError(f"unknown config field {key!r}{did_you_mean(key, names)}")
        for key in {"backbone", "weights_tag"} & changes.keys():  # read below, before Config checks all
            check_one(self, key, changes[key])
        backbone = changes.get("backbone", self.backbone)
        if backbone != self.backbone and backbone_kind(backbone) != "vit":
            changes = dict.fromkeys(VIT_SIZES) | {"weights": ""} | changes
        if backbone != self.backbone and "." in backbone:
            changes = {"weights_tag": ""} | changes
        elif changes.get("weights_tag") and "backbone" not in changes:
            changes["backbone"] = backbone.partition(".")[0]
        if "method" in changes and check_one(self, "method", changes["method"]) != self.method:
            changes = self._options_of(changes["method"], changes.get("steps", self.steps)) | changes
        return dataclasses.replace(self, **changes)

    def _options_of(self, method: str, steps: int) -> dict[str, Any]:
        """What the fields become that either this method or another one does not read, where the other one is taken."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        moved = [] if METHODS[self.method].segments_after is None else ["seg_start_step"]
        moved += METHODS[self.method].begins
        back = {name: defaults[name] for name in (*unread(self.method), *moved)}
        back |= {name: value for name, value in PRESETS.get(self.preset_name, {}).items() if name in back}
        after = METHODS[method].segments_after
        back |= {} if after is None else {"seg_start_step": round(after * steps)}
        back |= METHODS[method].begins
        return back | {name: silent(name, defaults[name]) for name in unread(method)}

    def released(self) -> Self:
        """This config with every quirk of the authors' released code switched on (see `toco_lab.method`)."""
        quirks = {f.name: f.metadata["quirk"] for f in dataclasses.fields(self) if f.metadata["quirk"] is not None}
        return self.replace(**{name: value for name, value in quirks.items() if name not in unread(self.method)})

    def to_json(self) -> str:
        """All fields as indented JSON; `from_json` gives an equal Config."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`. A missing field takes the value that runs had before there was such a field.

        Raises:
            ValueError: For text that is no JSON object, an unknown field, or a value that does not fit.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config: cannot be read as JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"config: must be a JSON object of fields and values, got {shown(fields)}")
        before = {f.name: f.metadata["before"] for f in dataclasses.fields(cls) if f.metadata["before"] != f.default}
        return cls().replace(**before | fields)

    @property
    def view2_side(self) -> int:
        """Side of the second global view, in pixels: `view2_size`, or where that is None `crop_size`."""
        return self.crop_size if self.view2_size is None else self.view2_size

    def digest(self) -> str:
        """Eight hex digits over the fields that can change a number, seed left out: runs of one digest are repeats.

        Fields at their default do not count, so a field added later leaves the names of old runs alone; where runs did
        something else before, that is what does not count (`before` of `fields.opt`). `view2_size` counts as the side
        it stands for, and not where that is 224, which was its default once. For the data set `folder` the folder's
        name counts too, because no other field says which images they are.
        """
        kept = {
            f.name: value
            for f in dataclasses.fields(self)
            if f.metadata["result"] and f.name != "seed" and (value := getattr(self, f.name)) != f.metadata["before"]
        }
        kept.pop("view2_size", None)
        if self.view2_side != FORMER_VIEW2_SIZE:
            kept["view2_size"] = self.view2_side
        if self.dataset == "folder":
            kept["data_root"] = Path(self.data_root).resolve().name
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """Folder name of this run: `<preset>-<digest>-s<seed>`."""
        return f"{self.preset_name or 'custom'}-{self.digest()}-s{self.seed}"

    def to_frame(self) -> "pd.DataFrame":
        """A pandas DataFrame (value, default, meaning) indexed by field name, for display in a notebook."""
        import pandas as pd

        rows = [(f.name, getattr(self, f.name), f.default, f.metadata["help"]) for f in dataclasses.fields(self)]
        return pd.DataFrame(rows, columns=["field", "value", "default", "meaning"]).set_index("field")


def field_help() -> dict[str, str]:
    """Help text of every field, in order."""
    return {field.name: field.metadata["help"] for field in dataclasses.fields(Config)}


def config_differences(configs: dict[str, Config]) -> dict[str, dict[str, Any]]:
    """Fields in which the named configs differ: field -> {name: value}. Seeds count, `preset_name` does not."""
    table = {}
    for field in dataclasses.fields(Config):
        values = {name: getattr(cfg, field.name) for name, cfg in configs.items()}
        if field.name == "view2_size" and len({cfg.view2_side for cfg in configs.values()}) == 1:
            continue  # None, and the side of the crop spelt out
        if field.name != "preset_name" and len(set(values.values())) > 1:
            table[field.name] = values
    return table
