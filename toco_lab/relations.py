"""What the fields of a Config may be together, and what the name of its backbone rules out."""

import dataclasses
import json
from typing import TYPE_CHECKING, Literal

from toco_lab.fields import shown
from toco_lab.methods import METHODS, silent, unread
from toco_lab.words import counted

if TYPE_CHECKING:
    from toco_lab.config import Config

VIT_SIZES = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")  # fields of plain ViTs alone
# beginnings of timm's names of its ResNet and ConvNeXt families
CNN_NAMES = ("convnext", "resnet", "resnext", "wide_resnet", "senet", "seresne", "ecaresne")


def check_relations(cfg: "Config") -> None:
    """What two values may be together, or the items of one."""
    _require(
        cfg.num_classes > 0 or cfg.dataset == "folder",
        f"num_classes must be at least 1 for dataset {cfg.dataset!r}, got 0: only a folder counts its own classes",
    )
    names = cfg.classes or ()
    _require(
        not names or cfg.num_classes in (0, len(names)),
        f"num_classes {cfg.num_classes} is not the number of classes, which names {len(names)}: leave num_classes "
        "at 0 to count them",
    )
    _require(
        cfg.toy_objects == 0 or cfg.toy_world == "parts",
        f"toy_objects {cfg.toy_objects} is for toy_world 'parts', the scenes of {cfg.toy_world!r} draw their number",
    )
    _require(
        cfg.dataset != "toy" or cfg.toy_world != "land" or cfg.crop_size <= 512,
        f"crop_size {cfg.crop_size} is the side of a scene, and those of toy_world 'land' have 512 pixels at most",
    )
    _require(cfg.jitter[3] <= 0.5, f"jitter may shift the hue, its last number, by 0.5 at most, got {cfg.jitter}")
    _require(cfg.cam_scales[0] == 1, f"cam_scales must begin with 1.0, got {cfg.cam_scales}")
    _require(cfg.local_crop_size % 2 == 0, f"local_crop_size must be even, got {cfg.local_crop_size}")
    _require(
        cfg.token_snapshots != 1,
        "token_snapshots must be 0 or at least 2 (before training and at the end), got 1",
    )
    _require(
        cfg.low_threshold < cfg.high_threshold,
        f"low_threshold must be below high_threshold, got {cfg.low_threshold} and {cfg.high_threshold}",
    )
    _check_fall(cfg)
    _check_crops(cfg)
    _check_training(cfg)
    _check_sizes(cfg)
    _check_backbone(cfg)
    _check_method(cfg)


def never_reached(cfg: "Config") -> list[str]:
    """What a run asks for and will not do, because it ends before: one sentence for each start step.

    Such a config is allowed, to look at the first steps of a preset; it is said when the run starts.
    """
    starts = {
        "contrast_start_step": ("PTC, CTC and the regression on the auxiliary CAM", ("w_ptc", "w_ctc", "w_distil")),
        "ctc_start_step": ("the terms of class token contrast", ("w_ctc",)),
        "seg_start_step": ("the segmentation and regularised losses", ("w_seg", "w_reg", "w_aff", "w_temporal")),
    }
    found = []
    for name, (losses, weights) in starts.items():
        if name in unread(cfg.method):
            continue
        first = getattr(cfg, name) + (cfg.late_segmentation and name == "seg_start_step")
        if first >= cfg.steps and any(getattr(cfg, weight) > 0 for weight in weights):
            found.append(
                f"{losses} never join: {name} {getattr(cfg, name)} is not below steps {cfg.steps}. Lower it for a run "
                f"this short, or set {', '.join(weights)} to 0"
            )
    falls_with = "seg_start_step" if cfg.threshold_fall_start_step is None else "threshold_fall_start_step"
    options = {
        falls_with: ("the upper threshold never falls", cfg.high_threshold_end is not None),
        "noise_start_step": ("the noise filter never acts", cfg.noise_start_step is not None),
    }
    found += [
        f"{what}: {name} {getattr(cfg, name)} is not below steps {cfg.steps}. Lower it for a run this short"
        for name, (what, asked) in options.items()
        if asked and getattr(cfg, name) >= cfg.steps
    ]
    return found


def _check_fall(cfg: "Config") -> None:
    """The falling threshold: how many numbers there are, and that each lies below the first and above the lower one."""
    ends = cfg.high_threshold_end
    if ends is None:
        _require(
            cfg.threshold_fall_start_step is None,
            f"threshold_fall_start_step {cfg.threshold_fall_start_step} says when the upper threshold begins to fall, "
            "and no high_threshold_end says how far: give it too, 0.55 say",
        )
        return
    _require(
        len(ends) == 1 or cfg.num_classes in (0, len(ends)),
        f"high_threshold_end needs 1 number or {counted(cfg.num_classes, 'number')}, one for each class, got "
        f"{len(ends)}",
    )
    _require(
        all(cfg.low_threshold < end <= cfg.high_threshold for end in ends),
        f"high_threshold_end must lie above low_threshold {cfg.low_threshold} and not above high_threshold "
        f"{cfg.high_threshold}, from which it falls, got {shown(ends)}",
    )


def _check_crops(cfg: "Config") -> None:
    """Both kinds of local crops must be possible, and none may be both."""
    ignored = cfg.ctc_between == "ignore"
    _require(
        not ignored or cfg.crop_max_negative <= cfg.crop_min_content,
        f"crop_max_negative {cfg.crop_max_negative} must not be above crop_min_content {cfg.crop_min_content}: a crop "
        "that shows as much would be a positive as well. Lower it, or set ctc_between to 'negative', which does not "
        "read it",
    )
    _require(
        not ignored or cfg.crop_candidates == "not_foreground",
        "crop_candidates 'uncertain' with ctc_between 'ignore' leaves no negatives, which are centred on background: "
        "set ctc_between to 'negative' as well, or leave crop_candidates 'not_foreground'",
    )


def _check_training(cfg: "Config") -> None:
    """Batches and steps."""
    _require(
        cfg.batch_size % cfg.accumulate == 0,
        f"accumulate {cfg.accumulate} must divide batch_size {cfg.batch_size}",
    )
    _require(
        cfg.warmup_steps < cfg.steps,
        f"warmup_steps {cfg.warmup_steps} must be below steps {cfg.steps}: a run this short needs fewer warm-up "
        f"steps too, warmup_steps={cfg.steps // 10} say",
    )
    start = max(cfg.ctc_start_step, cfg.contrast_start_step)
    _require(
        cfg.ctc_stop_step == 0 or start < cfg.ctc_stop_step,
        f"ctc_stop_step {cfg.ctc_stop_step} is not above the step with which CTC starts, {start}; 0 never stops it",
    )


def _check_sizes(cfg: "Config") -> None:
    """Sides in pixels, and the sizes of a plain ViT as far as they are given."""
    _require(
        cfg.local_crop_size < cfg.crop_size,
        f"local_crop_size {cfg.local_crop_size} must be smaller than crop_size {cfg.crop_size}",
    )
    patch = cfg.patch_size
    for name in ("crop_size", "local_crop_size", "image_size"):
        size = getattr(cfg, name)
        _require(
            patch is None or size is None or size % patch == 0,
            f"{name} {size} is not a multiple of patch_size {patch}",
        )
    _require(patch is None or cfg.view2_side >= patch, f"view2_size {cfg.view2_side} is less than patch_size {patch}")
    _require(
        cfg.embed_dim is None or cfg.num_heads is None or cfg.embed_dim % cfg.num_heads == 0,
        f"num_heads {cfg.num_heads} must divide embed_dim {cfg.embed_dim}",
    )
    _require(
        cfg.depth is None or "aux_layer" in unread(cfg.method) or -cfg.depth <= cfg.aux_layer < cfg.depth,
        f"aux_layer {cfg.aux_layer} is not one of the {cfg.depth} blocks that depth asks for",
    )


def _check_backbone(cfg: "Config") -> None:
    """What the name of the backbone rules out; the rest shows when the model is made."""
    kind, name = backbone_kind(cfg.backbone), cfg.backbone
    given = [f"{size}={getattr(cfg, size)}" for size in VIT_SIZES if getattr(cfg, size) is not None]
    _require(
        kind == "vit" or not given,
        f"{', '.join(given)} are sizes of plain ViTs; {name} keeps its own: leave them out (None), or give timm's "
        "names for them in backbone_args",
    )
    _require(
        kind == "cnn" or cfg.output_stride is None,
        f"output_stride dilates a ResNet or ConvNeXt, {name} is none: the side of its tokens is "
        + ("patch_size" if kind == "vit" else "32 pixels, or less with backbone_args='{\"patch_size\": 2}'"),
    )
    _require(
        kind == "vit" or cfg.anti_smoothing == "none",
        f"anti_smoothing {cfg.anti_smoothing!r} rescales attention between all tokens, which {name} does not "
        "have: set it to 'none', or take a plain ViT",
    )
    _require(
        kind == "vit" or not cfg.compile_blocks,
        f"compile_blocks is for plain ViTs: the auxiliary tokens of {name} come from a hook, which compiled blocks "
        "miss. Leave it False",
    )
    _require(
        kind == "vit" or cfg.frozen_blocks == 0,
        f"frozen_blocks is for plain ViTs; {name} is none: leave it 0. encoder_start_step holds the encoder of any",
    )
    _require(
        not (cfg.weights_tag and "." in name),
        f"backbone {name} names its weights already; leave weights_tag {cfg.weights_tag!r} out, or the tag in the name",
    )
    _require(
        _is_json_object(cfg.backbone_args),
        f'backbone_args must be a JSON object like {{"embed_dim": 48}}, got {shown(cfg.backbone_args)}',
    )


def _check_method(cfg: "Config") -> None:
    """What the method rules out: options that only other methods read, and backbones without a class token."""
    defaults = {field.name: field.default for field in dataclasses.fields(cfg)}
    for name in unread(cfg.method):
        off, value = silent(name, defaults[name]), getattr(cfg, name)
        readers = [method for method, about in METHODS.items() if name in about.reads]
        _require(
            value == off,
            f"{name} {shown(value)} has no effect: method {cfg.method!r} does not read it. Leave it out "
            f"(`replace` then makes it {shown(off)}), or take a method that reads it: {', '.join(readers)}",
        )
    _check_head_weights(cfg)
    about = METHODS[cfg.method]
    _require(
        not about.class_token or backbone_kind(cfg.backbone) == "vit",
        f"method {cfg.method!r} ({about.title}) reads the attention of a class token to all patches, and "
        f"{cfg.backbone} has none: take a plain ViT, or method 'toco'",
    )
    _require(
        not about.attention or not cfg.compile_blocks,
        f"compile_blocks is for method 'toco': the maps of {cfg.method!r} come from hooks in the blocks, which "
        "compiled blocks miss. Leave it False",
    )
    _check_affinity(cfg)
    _check_second_stage(cfg)
    _check_few_masks(cfg)
    _check_clips(cfg)


def _check_clips(cfg: "Config") -> None:
    """Pairs of frames: where they come from, and what compares them."""
    if not cfg.train_on_clips:
        for name, off in (("w_temporal", 0), ("clip_flow", "ground_truth"), ("ptc_across_frames", False)):
            value = getattr(cfg, name)
            _require(
                value == off,
                f"{name} {shown(value)} has no effect: it is about pairs of frames, and training images are single "
                f"ones. Set train_on_clips, or leave {name} out ({shown(off)})",
            )
        return
    world = f"dataset {cfg.dataset!r}" if cfg.dataset != "toy" else f"toy_world {cfg.toy_world!r}"
    _require(
        cfg.dataset == "toy" and cfg.toy_world == "shapes",
        f"train_on_clips makes clips of toy scenes, and {world} has none: leave it False, or take dataset 'toy' with "
        "toy_world 'shapes'",
    )
    _require(
        cfg.batch_size // cfg.accumulate % 2 == 0,
        f"batch_size {cfg.batch_size} in {counted(cfg.accumulate, 'micro-batch')} (accumulate) tears pairs of frames "
        "apart, which train_on_clips makes: a micro-batch needs an even number of images",
    )
    _require(
        cfg.masks_for == 0,
        f"masks_for {cfg.masks_for} draws single images, and train_on_clips pairs of frames: leave one of the two out",
    )
    _require(
        cfg.w_temporal == 0 or cfg.w_seg > 0,
        f"w_temporal {cfg.w_temporal} compares segmentations, which nothing teaches while w_seg is 0: set it to 0 too",
    )
    _require(
        cfg.w_temporal > 0 or cfg.clip_flow == "ground_truth",
        f"clip_flow {cfg.clip_flow!r} has no effect: w_temporal is 0. Set w_temporal to 0.1, or leave clip_flow out",
    )
    _require(
        not cfg.ptc_across_frames or cfg.w_ptc > 0,
        "ptc_across_frames has no effect: w_ptc is 0. Set w_ptc to 0.2, or leave ptc_across_frames False",
    )


def _check_few_masks(cfg: "Config") -> None:
    """Masks of a few images are true ones; consistency needs images without, and two views that lie alike."""
    _require(
        cfg.masks_for == 0 or not cfg.mask_source,
        f"masks_for {cfg.masks_for} draws images that give their true mask, and mask_source {cfg.mask_source!r} is a "
        "folder of other masks: leave one of the two out",
    )
    if cfg.w_consistency == 0:
        for field in dataclasses.fields(cfg):
            value = getattr(cfg, field.name)
            _require(
                not field.name.startswith("consistency_") or value == field.default,
                f"{field.name} {value} has no effect: w_consistency is 0. Set w_consistency to 1, or leave "
                f"{field.name} out ({field.default})",
            )
        return
    _require(
        cfg.masks_for > 0,
        f"w_consistency {cfg.w_consistency} learns from images without a mask, and masks_for 0 gives every image one: "
        "say how many have one, masks_for=64 say, or leave w_consistency 0",
    )
    _require(
        cfg.w_soft == 0,
        f"w_consistency {cfg.w_consistency} and w_soft {cfg.w_soft} are not learnt together: set one of them to 0",
    )
    _require(
        not cfg.flip_views_independently,
        "flip_views_independently mirrors the two views that w_consistency compares apart: leave it False",
    )


def _check_second_stage(cfg: "Config") -> None:
    """A supervised method needs a loss, and soft labels need both a teacher and a weight."""
    _require(
        METHODS[cfg.method].cams or cfg.w_seg > 0 or cfg.w_soft > 0,
        f"method {cfg.method!r} has nothing to learn: w_seg and w_soft are 0. Set w_seg to 1",
    )
    _require(
        cfg.w_soft == 0 or bool(cfg.soft_teacher),
        f"w_soft {cfg.w_soft} weighs the soft labels of a teacher, and there is none: give the folder of its run as "
        "soft_teacher, or leave w_soft 0",
    )
    _require(
        cfg.w_soft > 0 or not cfg.soft_teacher,
        f"soft_teacher {cfg.soft_teacher!r} has no effect: w_soft is 0. Set w_soft to 0.5, and w_seg to 0.5 beside it",
    )


def _check_affinity(cfg: "Config") -> None:
    """Where an affinity is read or learned: it needs the attention between all patches, and a pseudo label."""
    first = cfg.eval_refine.partition("+")[0]
    _require(
        first != "patch" or backbone_kind(cfg.backbone) == "vit",
        f"eval_refine {cfg.eval_refine!r} reads the attention between all patches, which {cfg.backbone} does not "
        "have: take 'par', 'pamr' or 'crf'",
    )
    _require(
        first != "walk" or cfg.method == "afa" or cfg.w_aff > 0,
        f"eval_refine {cfg.eval_refine!r} walks along a learned affinity, and nothing trains one: take method 'afa' or "
        "a w_aff above 0, or another refinement ('patch' needs no training)",
    )
    if cfg.method != "afa" and cfg.w_aff == 0:
        return
    who = "method 'afa'" if cfg.method == "afa" else f"w_aff {cfg.w_aff}"
    reads = f"{who} reads the attention between all patches"
    _require(backbone_kind(cfg.backbone) == "vit", f"{reads}, which {cfg.backbone} does not have: take a plain ViT")
    _require(not cfg.compile_blocks, f"{reads} by hooks, which compiled blocks miss. Leave compile_blocks False")
    _require(
        cfg.method == "afa" or cfg.w_seg > 0 or cfg.w_reg > 0,
        f"{who} compares pairs of the segmentation's pseudo label, which is not made while w_seg and w_reg are 0",
    )


def _check_head_weights(cfg: "Config") -> None:
    """MCTformer's plain sums and WeakTr's head weights have one option each that the other does not read."""
    _require(
        cfg.mct_head_weights or cfg.mct_map_weight == 1,
        f"mct_map_weight {cfg.mct_map_weight} has no effect: it is of the loss that teaches the head weights. Leave it "
        "out (1.0), or set mct_head_weights",
    )
    _require(
        not cfg.mct_head_weights or cfg.mct_layers is None,
        f"mct_layers {cfg.mct_layers} has no effect with mct_head_weights, which weighs the heads of all blocks: leave "
        "it out (None)",
    )
    _require(
        not (cfg.mct_head_weights and cfg.checkpoint_blocks),
        "mct_head_weights reads attention while a step runs, and checkpoint_blocks runs the blocks a second time: "
        "leave it False",
    )
    _require(
        cfg.depth is None or cfg.mct_layers is None or cfg.mct_layers <= cfg.depth,
        f"mct_layers {cfg.mct_layers} is more than the {counted(cfg.depth or 0, 'block')} that depth asks for",
    )


def backbone_kind(backbone: str) -> Literal["vit", "swin", "cnn"]:
    """What a timm name stands for, by its beginning; all but Swins, ResNets and ConvNeXts count as plain ViTs."""
    name = backbone.rpartition("/")[2].removeprefix("test_")
    return "swin" if name.startswith("swin") else "cnn" if name.startswith(CNN_NAMES) else "vit"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"config: {message}")


def _is_json_object(text: str) -> bool:
    """Whether a text is a JSON object without NaN or infinity; nothing at all counts as an empty one."""
    try:
        arguments = json.loads(text or "{}")
        json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return isinstance(arguments, dict)
