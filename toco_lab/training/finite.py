"""Training stops at the first loss or weight that is NaN or infinite, and says where to go on from."""

from dataclasses import fields

from torch import Tensor

from toco_lab.method.model import ToCo
from toco_lab.method.step import LossTerms
from toco_lab.runs.run_dir import RunDir


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step, the cause and the last good checkpoint."""


def mean_terms(terms: Tensor, first_step: int, run: RunDir) -> dict[str, float]:
    """Mean of each term over some steps, as columns of metrics.csv (`cls_loss`, ..., `positive_cosine`, ...).

    Args:
        terms: (steps, terms), in the order of `LossTerms`: the losses up to their total, then cosines, which are NaN at
            a step without such pairs and left out of the mean.
        first_step: 0-based step of the first row.
        run: Named in the error.

    Raises:
        TrainingError: If a loss was not finite at one of these steps.
    """
    names = [field.name for field in fields(LossTerms)]
    num_losses = names.index("total") + 1
    bad = ~terms[:, :num_losses].isfinite()
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        wrong = [name for name, is_bad in zip(names[:num_losses], bad[row].tolist(), strict=True) if is_bad]
        raise TrainingError(
            f"loss {', '.join(wrong)} is not finite at step {first_step + row}; {_last_good(run)}. Training from it "
            f"again meets the same step: lower learning_rate, look at the images of that step, or set the weight of "
            f"the term to 0"
        )
    columns = [f"{name}_loss" for name in names[:num_losses]] + names[num_losses:]
    return dict(zip(columns, terms.nanmean(0).tolist(), strict=True))


def check_weights(model: ToCo, step: int, run: RunDir) -> None:
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
