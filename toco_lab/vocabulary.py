"""The words that tables are read by: values of columns, keys and headings that several modules share, each spelt once.

This module imports nothing, so that every room can read it. A word that only one module uses stays in that module.
"""

# Sites: where in the encoder the tokens of a row were read (column `site`), in the order in which a token meets them.
EMBEDDING = "patch embedding"  # what enters the first block: patches with their positions
AFTER_ATTENTION = "after attention"  # the residual stream between the attention and the MLP of a block
AFTER_BLOCK = "after block"  # the residual stream behind a block, not normalised
FINAL_NORM = "final norm"  # what the classifier reads
SITES = (EMBEDDING, AFTER_ATTENTION, AFTER_BLOCK, FINAL_NORM)
ATTENTION = "attention"  # site of metrics that read attention maps and no tokens
NO_NORM = "none"  # value of the column `norm` where tokens are not normalised

# Token sets: which tokens a number is about (column `token_set`).
PATCH_TOKENS = "patch tokens"  # without class, distillation and register tokens
ALL_TOKENS = "all tokens"
CLASS_AND_PATCH_TOKENS = "class and patch tokens"
ALL_IMAGES = "all images"  # value of the column `image` of a number that belongs to no single image

# Over-smoothing metrics that more than one module asks for: (metric, variant), keys of `smoothing.METRICS`.
MEAN_ABSOLUTE_COSINE = ("pairwise cosine", "absolute, off-diagonal")  # the "similarity" of figures and tables
POSITIVE_COSINE = ("positive cosine", "absolute, true label")
NEGATIVE_COSINE = ("negative cosine", "absolute, true label")

# Targets: what is evaluated (column `target`). A validation score stands in the column `val_<target>` of metrics.csv.
CAM = "cam"
CAM_AUX = "cam_aux"
CAM_REFINED = "cam_refined"
SEG = "seg"
SEG_CRF = "seg_crf"
LABELS = "labels"
BACKGROUND = "background"  # label 0 of every mask, as tables name it
# Each CAM once more, at the background threshold that is best on training images, where the above have the config's.
CAM_TUNED = "cam_tuned"
CAM_AUX_TUNED = "cam_aux_tuned"
CAM_REFINED_TUNED = "cam_refined_tuned"
TUNED = {CAM: CAM_TUNED, CAM_AUX: CAM_AUX_TUNED, CAM_REFINED: CAM_REFINED_TUNED}


def base_target(target: str) -> str:
    """The target that a tuned one is the same map of: `cam` for `cam_tuned`; others are their own."""
    return next((base for base, tuned in TUNED.items() if tuned == target), target)


VALIDATED = (CAM, CAM_AUX, SEG)  # what validation during training adds to metrics.csv
# Beside them: how much true object the positive and the negative local crops of the validation images show.
CROP_OBJECTS = ("ctc_positive_object", "ctc_negative_object")

# Sizes of what an image shows of a class, in the order shown.
SIZES = ("small", "middle", "large")

# Measures of how faithful an attribution is (column `measure`).
INSERTION = "insertion"
DELETION = "deletion"
POINTING = "pointing game"

# Columns of metrics.csv about the local crops of CTC: cosines of their projections, and the shares of their kinds.
CROP_STATISTICS = (
    "ctc_positive_cosine",
    "ctc_negative_cosine",
    "ctc_positive_share",
    "ctc_negative_share",
    "ctc_ignored_share",
)
# The file of a run that an older version began lacks these, also when it is continued.
COLUMNS_ADDED_LATER = (*CROP_STATISTICS, *(f"val_{name}" for name in CROP_OBJECTS), "noise_share")

# Values of the column `class` that are the mean score of a target and no class.
MIOU = "mIoU"
F1 = "F1"
MEAN_SCORES = (MIOU, F1)
BOUNDARY = "boundary"  # end of the name of a score: `cam_boundary` is the mean boundary IoU beside `cam_mIoU`

# Keys of a protocol that records of older versions lack; that they are not there is no difference.
ADDED_LATER = ("decoder", "classes_in_mean", "boundary_width")

TITLES = {  # target, or column of metrics.csv -> what the reader sees
    CAM: "CAM",
    CAM_AUX: "auxiliary CAM",
    CAM_REFINED: "CAM, refined",
    CAM_TUNED: "CAM, tuned threshold",
    CAM_AUX_TUNED: "auxiliary CAM, tuned threshold",
    CAM_REFINED_TUNED: "CAM, refined, tuned threshold",
    SEG: "segmentation",
    SEG_CRF: "segmentation + CRF",
    LABELS: "image labels",
    "cls_loss": "classification loss",
    "cls_aux_loss": "auxiliary classification loss",
    "ptc_loss": "patch token contrast (PTC)",
    "ctc_loss": "class token contrast (CTC)",
    "distil_loss": "regression on the auxiliary CAM",
    "seg_loss": "segmentation loss",
    "aff_loss": "affinity loss",
    "reg_loss": "regularised loss",
    "soft_loss": "divergence from the teacher",
    "consistency_loss": "loss of the view that is taught",
    "temporal_loss": "difference of two frames along the flow",
    "certain_share": "confident pixels of images without a mask",
    "total_loss": "total loss",
    "positive_cosine": "|cos| of positive pairs",
    "negative_cosine": "|cos| of negative pairs",
    "ctc_positive_cosine": "cosine of global views and positive crops",
    "ctc_negative_cosine": "cosine of global views and negative crops",
    "ctc_positive_share": "share of positive crops",
    "ctc_negative_share": "share of negative crops",
    "ctc_ignored_share": "share of ignored crops",
    "noise_share": "foreground taken for noise",
    "val_ctc_positive_object": "true object in positive crops",
    "val_ctc_negative_object": "true object in negative crops",
    "val_cam": "CAM mIoU",
    "val_cam_aux": "auxiliary CAM mIoU",
    "val_seg": "segmentation mIoU",
}
