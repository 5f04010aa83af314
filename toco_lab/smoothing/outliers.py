"""Tokens of large norm: above which length a token is an outlier."""

from torch import Tensor

OUTLIER_DEVIATIONS = 5.0  # of a Gaussian's tokens 3e-7 lie beyond; 3 would flag one normal token in each 28 x 28 image
MAD_TO_DEVIATION = 1.4826  # median absolute deviation -> standard deviation, for a Gaussian


def norm_cut(norms: Tensor, *, deviations: float = OUTLIER_DEVIATIONS) -> Tensor:
    """Length above which a token is an outlier: median + deviations * 1.4826 * median absolute deviation (MAD).

    Darcet et al. 2024 read a cut of 150 off the histogram of DINOv2-g. The scale differs between models, so this cut
    follows the norms. Median and MAD do not move while fewer than half of the tokens are outliers, and 5 standard
    deviations are beyond the tail of a single mode. For one cut per model, pass the pooled norms of many images.

    Args:
        norms: (..., n).
        deviations: In standard deviations of a Gaussian of this MAD.

    Returns:
        (...).
    """
    median = norms.quantile(0.5, dim=-1)
    spread = (norms - median[..., None]).abs().quantile(0.5, dim=-1)
    return median + deviations * MAD_TO_DEVIATION * spread
