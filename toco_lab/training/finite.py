"""Training stops at the first loss or weight that is NaN or infinite, and says where to go on from."""

from collections.abc import Sequence

from torch import Tensor, nn

from toco_lab.method.step import LOSSES, PEER_LOSSES
from toco_lab.runs.run_dir import RunDir


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step, the cause and the last good checkpoint."""


def mean_terms(terms: Tensor, names: Sequence[str], first_step: int, run: RunDir) -> dict[str, float]:
    """Mean of each term over some steps, as columns of metrics.csv (`cls_loss`, ..., `positive_cosine`, ...).

    Args:
        terms: (steps, terms). Cosines are NaN at a step without such pairs, which is left out of their mean.
        names: Of the terms, as from `LossTerms.named`.
        first_step: 0-based step of the first row.
        run: Named in the error.

    Raises:
        TrainingError: If a loss was not finite at one of these steps.
    """
    losses = {name: place for place, name in enumerate(names) if name in (*LOSSES, *PEER_LOSSES, "total")}
    bad = ~terms[:, [*losses.values()]].isfinite()
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        wrong = [name for name, is_bad in zip(losses, bad[row].tolist(), strict=True) if is_bad]
        raise TrainingError(
            f"loss {', '.join(wrong)} is not finite at step {first_step + row}; {_last_good(run)}. Training from it "
            f"again meets the same step: lower learning_rate, look at the images of that step, or set the weight of "
            f"the term to 0"
        )
    columns = [f"{name}_loss" if name in losses else name for name in names]
    return dict(zip(columns, terms.nanmean(0).tolist(), strict=True))


def check_weights(model: nn.Module, step: int, run: RunDir) -> None:
    """What is about to be kept must be good: the losses of a step may be finite and its update not.

    Args:
        model: After the update.
        step: Steps made so far.
        run: Named in the error.

    Raises:
        TrainingError: If a weight is not finite.
    """
    bad = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if bad:
        raise TrainingError(
            f"weight {bad[0]} (and {len(bad) - 1} more) is not finite after step {step}; {_last_good(run)}. Lower "
            f"learning_rate, or look at the images of the last steps"
        )


def _last_good(run: RunDir) -> str:
    saved = run.checkpoints()
    return f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
