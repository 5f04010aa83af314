"""The attributions that the explorers offer, under the names they always had here; see `toco_lab.attribution`."""

from toco_lab.attribution.attention import attention_rollout, gradient_attention
from toco_lab.attribution.catalogue import ATTRIBUTIONS, Attribution
from toco_lab.attribution.gradients import grad_cam

__all__ = ["ATTRIBUTIONS", "Attribution", "attention_rollout", "grad_cam", "gradient_attention"]
