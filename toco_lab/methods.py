"""The methods that a run can train, and which fields of the Config each of them reads.

ToCo is the default. The others are the systems that the field compares with, in the same frame: same data, steps,
encoder, evaluation (`toco_lab.peers`). A field that only some methods read is refused where another one is trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toco_lab.config import Config

_CAMS = (
    "w_cls", "cam_relu", "low_threshold", "high_threshold", "background_threshold", "par_dilations", "par_iterations",
    "eval_refine",
)  # fmt: skip
_HEADS = ("pooling", "probe_heads")
_DECODER = ("w_seg", "decoder_width", "decoder_dilation", "eval_crf")
_AUXILIARY = ("aux_layer", "w_cls_aux", "aux_label_steps")
_PATCH_CONTRAST = ("w_ptc", "w_distil", "contrast_start_step", "ptc_similarity", "ptc_box_units")
_CLASS_CONTRAST = (
    "w_ctc", "ctc_start_step", "ctc_stop_step", "ctc_temperature", "ctc_negative_only_term", "ctc_between", "teacher",
    "teacher_momentum", "head_hidden", "head_bottleneck", "head_out", "num_local_crops", "crop_candidates",
    "crop_min_content", "crop_max_negative", "crop_content", "crops_in_valid_box",
)  # fmt: skip
FEW_MASKS = ("masks_for", "w_consistency", "consistency_threshold", "consistency_jitter")
_EXTENSIONS = ("masks_for", "train_on_clips", "w_temporal", "clip_flow", "ptc_across_frames")  # of ToCo
_AFA = ("afa_labels", "afa_walk_start_step")
_AFFINITY = ("w_aff", "afa_radius", "afa_scaled")
_SEGMENTATION = (
    *_DECODER, "w_reg", "seg_start_step", "late_segmentation", "refine", "high_threshold_end",
    "threshold_fall_start_step", "noise_start_step", "noise_posterior", "noise_gap", "noise_min_pixels",
    "reg_scale_factor", "reg_sigma_rgb", "reg_sigma_xy", "reg_scale", "reg_gate",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """What is to be known of a method before a model of it is made.

    Attributes:
        title: For tables and figures.
        source: Where it comes from.
        reads: Fields that some methods read and others do not; this one reads these.
        decoder: Whether it trains a decoder, so that there is a segmentation.
        class_token: Whether it reads the attention of a class token: only a plain ViT has one.
        cams: Whether it has class activation maps. One without learns from masks alone (`Batch.mask`).
        attention: Whether it reads the attention of a plain ViT, be it of a class token or between patches.
        begins: Values of fields that several methods read, where a config is switched to this one.
        segments_after: Share of the steps after which the segmentation losses join where a config is switched to this
            method; None leaves `seg_start_step` as it is.
    """

    title: str
    source: str
    reads: tuple[str, ...]
    decoder: bool = True
    cams: bool = True
    class_token: bool = True
    segments_after: float | None = None
    attention: bool = True
    begins: Mapping[str, float] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "toco": Method(
        "ToCo",
        "Ru et al., CVPR 2023",
        (*_CAMS, *_HEADS, *_AUXILIARY, *_PATCH_CONTRAST, *_CLASS_CONTRAST, *_SEGMENTATION, *_AFFINITY, *_EXTENSIONS),
        class_token=False,
        attention=False,
    ),
    "tscam": Method("TS-CAM", "Gao et al., ICCV 2021", _CAMS, decoder=False),
    "getam": Method(
        "GETAM", "Sun et al., arXiv 2112.02841", (*_CAMS, "getam_start", *_SEGMENTATION), segments_after=0.5
    ),
    "afa": Method(
        "AFA",
        "Ru et al., CVPR 2022",
        (*_CAMS, "probe_heads", "aux_layer", "w_cls_aux", *_AFA, *_AFFINITY, *_SEGMENTATION),
        class_token=False,
        begins={"w_aff": 0.1, "w_reg": 0.0, "low_threshold": 0.35, "high_threshold": 0.55},
    ),
    "mct": Method(
        "MCTformer",
        "Xu et al., CVPR 2022",
        (*_CAMS, "mct_layers", "mct_patch_weight", "mct_head_weights", "mct_map_weight"),
        decoder=False,
    ),
    "mct_plus": Method(
        "MCTformer+",
        "Xu et al., arXiv 2308.03005",
        (*_CAMS, "mct_layers", "mct_patch_weight", "mct_contrast_weight", "mct_contrast_layers", "mct_decay"),
        decoder=False,
    ),
    "supervised": Method(
        "supervised",
        "masks in place of image labels",
        ("mask_source", *FEW_MASKS, "soft_teacher", "soft_temperature", "w_soft", *_DECODER),
        cams=False,
        class_token=False,
        attention=False,
        begins={"w_seg": 1.0},
    ),
}
# not one method reads the others' options
FIELDS_OF_SOME = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.reads))


def unread(method: str) -> list[str]:
    """The fields that other methods read, and this one does not."""
    return [name for name in FIELDS_OF_SOME if name not in METHODS[method].reads]


def silent(name: str, default: Any) -> Any:
    """What a field that is not read must be: a loss has weight 0, all else its default."""
    return 0.0 if name.startswith("w_") else default


def has_decoder(cfg: "Config") -> bool:
    """Whether the method of a config trains a decoder."""
    return METHODS[cfg.method].decoder


def learns_segmentation(cfg: "Config") -> bool:
    """Whether a run of a config trains its decoder; that of another says nothing."""
    return has_decoder(cfg) and (cfg.w_seg > 0 or cfg.w_soft > 0)


def has_cams(cfg: "Config") -> bool:
    """Whether the method of a config has class activation maps."""
    return METHODS[cfg.method].cams


def reads_masks(cfg: "Config") -> bool:
    """Whether a run of a config learns from masks, so that `Batch.mask` is made."""
    return not has_cams(cfg) or cfg.masks_for > 0


def reads_images_without_mask(cfg: "Config") -> bool:
    """Whether a run of a config learns from training images that have no mask as well."""
    return has_cams(cfg) or cfg.w_consistency > 0
