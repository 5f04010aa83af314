"""The paper: everything ToCo computes, and nothing of the lab around it.

Ru, Zheng, Zhan, Du: "Token Contrast for Weakly-Supervised Semantic Segmentation" (CVPR 2023). Segmentation is learned
from image labels alone: class activation maps (CAMs) of a Vision Transformer serve as pseudo labels. Two losses mend
what is wrong with these maps:

- Patch tokens of deep layers become nearly equal (over-smoothing), so the CAM of the last layer is flat. Patch token
  contrast (PTC) teaches the final tokens to differ where the tokens of an earlier block still do.
- A CAM covers only the most discriminative part of an object. Class token contrast (CTC) pulls the class token of a
  local crop around an uncertain region towards that of the whole image, and pushes that of a crop of background away.

Symbols
-------
B images, H x W pixels; C foreground classes, background is 0 and ignored is 255; D channels of a token; h x w tokens,
h = H / patch size. S classes present in the image of the batch that shows most (`present.PresentClasses`).

Forward pass (`model.ToCo`)
---------------------------
Image (B, 3, H, W) -> encoder -> class token (B, D) and patch tokens (B, D, h, w), both after the final norm; and the
auxiliary patch tokens of an earlier block (`aux_layer`), not normalised. The position embedding is frozen.

- Two classifiers without bias, one for the final and one for the auxiliary tokens: applied to the maximum over all
  positions they give image logits (B, C), applied to each position a raw CAM (B, C, h, w).
- The decoder gives segmentation logits (B, C + 1, h, w) of the final tokens.
- The projection head maps the class token into the space of CTC. It has a teacher, its exponential moving average. Both
  read the same encoder.

One training step (`step.compute_losses`)
-----------------------------------------
1. CAMs: `cam.multi_scale_cam` runs image and mirror image at several scales without gradient and normalises each map
   to [0, 1). It gives a CAM of the final and one of the auxiliary tokens, for the present classes alone.
2. Local crops: `labels.region_mask` splits the image by the auxiliary CAM into background, uncertain and foreground.
   `crops.sample_local_crops` draws half of the crops around uncertain positions, to be positives where they show
   enough of an object, and half around background, to be negatives where they show next to none. What is neither is
   ignored.
3. CTC: `step.class_token_contrast` projects the class tokens of two global views (the training image, and a random part
   of the unscaled image at the size of the crop) and of the local crops; `losses.ctc_loss` contrasts the teacher's
   projections of the global views with the student's of all views. The second global view is always a positive,
   whatever it shows.
4. PTC: `labels.token_labels` labels every token by the auxiliary CAM, `losses.affinity_mask` makes pairs of equal and
   of different labels, and `losses.ptc_terms` raises the |cos| of final tokens in the former and lowers it in the
   latter.
5. Pseudo label: `refine.refine_cam` refines the CAM by pixel-adaptive refinement (PAR), once beside a high and once
   beside a low background score. Where the two runs disagree about background, the pixel is ignored.
6. Segmentation: `losses.seg_loss` is the cross entropy with the pseudo label, background and foreground weighted
   equally. `losses.reg_loss` is a dense CRF energy, filtered on the permutohedral lattice (`lattice.Lattice`).
7. The sum: cls + cls_aux + 0.2 PTC + 0.5 CTC + 0.1 seg + 0.05 reg, where cls and cls_aux are
   `losses.classification_loss` of the image logits. `step.loss_weights` says which terms are on at a step: the
   segmentation losses, and in COCO the contrasts, join later.

The optimiser step around it is `toco_lab.training.learner.train_step`. `crf.dense_crf` is for the evaluation.

Quirks
------
In places the released code departs from the plain reading of the paper. Each place has a field of the `Config` marked
"quirk": its default is the sound behaviour, and `Config.released` switches all of them to the released one. Here:

- `ctc_between`, `crop_content`, `crops_in_valid_box` (step 2): a crop is a positive or a negative by its content alone,
  crops count confident foreground double, and may lie on padding. (`crop_candidates` has a released value too, which is
  the default: crops of background belong to the paper.)
- `ctc_negative_only_term` (step 3): a term without positives is added once per image.
- `ptc_box_units` (step 4): the valid box is used in pixels on the token grid, so most padded images drop out.
- `late_segmentation` (step 7): the segmentation losses join one step late.

The training views have theirs in `toco_lab.data.views`, which draws the numbers and applies them apart: `padding`,
`colours_on`, `flip_views_independently`, `flip_valid_box`, `normalisation`.

Three habits of the released code are kept: PTC adds 1 to its numbers of pairs, PAR's weights sum to 1.01, and the
energy's gradient is the one written by hand unless `reg_gate` is `exact`.

Not part of ToCo
----------------
Off by default, from DuPL (CVPR 2024): the upper threshold of steps 4 and 5 may fall while a run goes on
(`falling_threshold.high_threshold`), and foreground of the pseudo label with an outlying loss may be ignored
(`noise.ignore_noise`). Not from a paper: `losses.distil_loss` in place of PTC; and where a batch brings true masks
(`Config.masks_for`), they stand in for the labels of steps 2, 4 and 5 (`labels.where_known`, `token_labels_of_mask`,
`region_of_mask`). Of pairs of frames (`Config.train_on_clips`), step 4 may compare tokens across the pair, and
`losses.temporal_loss` the segmentations along the flow (`flow.warp`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
