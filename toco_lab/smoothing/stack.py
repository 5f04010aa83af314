"""Several layers of one image as the batch of one view, so that each metric is computed on all of them at once."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from toco_lab.smoothing.arithmetic import column_products, inverse
from toco_lab.smoothing.catalogue import MetricKey, measurable, measure
from toco_lab.smoothing.layers import Layer
from toco_lab.smoothing.token_view import TokenView
from toco_lab.vocabulary import AFTER_BLOCK, FINAL_NORM

STACK_NUMBERS = 2**19  # in the largest array of a stack: more would leave the cache, less would be many small calls
GPU_STACK_NUMBERS = 2**25  # the same where calls are dear and memory is near: 256 MB in double precision


@dataclass(frozen=True, eq=False)
class LayerStack(TokenView):
    """Successive layers of one image, made by `stack_layers`; entry l of the batch is layer l.

    `previous_tokens` and `previous_attention` have a batch of 1: they belong to the layer before the first. For every
    other layer, the layer before is in the stack.

    Attributes:
        gram_before: `unit_gram` of the layer before the first, (1, N * N), where it is known.
    """

    gram_before: Tensor | None = None

    @property
    def num_previous(self) -> int:
        """One: the layer before the first."""
        return 1

    @cached_property
    def previous_unit_gram(self) -> Tensor:
        """`unit_gram` of the layer before each layer, (L, N * N), taken from the stack where it is there."""
        before = self.gram_before
        if before is None:
            before = TokenView(self.need("previous_tokens"), self.grid).unit_gram
        return torch.cat([before, self.unit_gram[:-1]])

    @cached_property
    def previous_cosine(self) -> Tensor:
        """`cosine` of the layer before each layer, (L, N, N), taken from the stack where it is there."""
        first = TokenView(self.need("previous_tokens"), self.grid).cosine
        return torch.cat([first, self.cosine[:-1]])

    @cached_property
    def attention_similarity(self) -> Tensor:
        """Cosine of each column of the attention with that of the layer before, (L, heads, T)."""
        now, first, lengths = self.need("attention"), self.need("previous_attention"), self.column_lengths
        products = torch.cat([column_products(now[:1], first), column_products(now[1:], now[:-1])])
        before = torch.cat([column_products(first, first).sqrt(), lengths[:-1]])
        return products * inverse(lengths) * inverse(before)


def stack_layers(views: Sequence[TokenView], gram_before: Tensor | None = None) -> LayerStack:
    """Make successive layers of one image the batch of one view.

    Where only some layers have a field (attention, tokens of the block before), it is NaN for the others, and so are
    the metrics that need it. Labels, patch embedding and other fields of the image are those of the first view.

    Args:
        views: First layer first; each with one image, all of one grid and width. Where a view has `previous_tokens`,
            these must be the tokens of the view before it.
        gram_before: `unit_gram` of the layer before the first; saves computing it again.

    Raises:
        ValueError: If the views are not of successive layers of one image with one grid and width.
    """
    for before, view in itertools.pairwise(views):
        if view.previous_tokens is not None and view.previous_tokens is not before.tokens:
            raise ValueError("the tokens of the block before are not those of the layer before in the stack")
    shapes = {tuple(view.tokens.shape) for view in views}
    first = views[0]
    if len(shapes) > 1 or len(first.tokens) != 1:
        raise ValueError(f"a stack is of layers of one image with equal grids, not of tokens {sorted(shapes)}")
    return LayerStack(
        _batch([view.tokens for view in views]),
        first.grid,
        first.label,
        _joined([view.class_token for view in views]),
        _joined([view.attention for view in views]),
        _first([view.previous_attention for view in views]),
        _first([view.previous_tokens for view in views]),
        first.embedding,
        first.num_prefix,
        first.patch_size,
        gram_before=gram_before,
    )


def _batch(values: Sequence[Tensor]) -> Tensor:
    """The values as one batch; a single value is not copied."""
    return values[0] if len(values) == 1 else torch.cat(list(values))


def _joined(values: Sequence[Tensor | None]) -> Tensor | None:
    """All values as one batch, NaN in place of those that are missing; None if all are."""
    known = next((value for value in values if value is not None), None)
    if known is None:
        return None
    filled = [torch.full_like(known, torch.nan) if value is None else value for value in values]
    return _batch(filled)


def _first(values: Sequence[Tensor | None]) -> Tensor | None:
    """The first value, NaN if it is missing while another layer has one; None if all are missing."""
    known = next((value for value in values if value is not None), None)
    return torch.full_like(known, torch.nan) if values[0] is None and known is not None else values[0]


@dataclass
class LayerValues:
    """What was measured on one layer.

    Attributes:
        values: By metric; NaN where a metric has no value. A metric whose needs the layer does not meet is absent.
        moment: X^T X, (D, D), the contribution of the layer to RankMe; None if not asked for.
    """

    values: dict[MetricKey, float] = field(default_factory=dict)
    moment: Tensor | None = None


def measure_layers(
    layers: Sequence[Layer], keys: Sequence[MetricKey], *, with_moment: bool = False
) -> list[LayerValues]:
    """Compute metrics on the layers of one image, as many layers at once as the cache holds.

    Args:
        layers: Of one pass, in its order.
        keys: Metrics; each is computed on the layers that meet its needs.
        with_moment: Return the contribution to RankMe as well.
    """
    results = [LayerValues() for _ in layers]
    for numbers in _stackable(layers):
        gram = None
        for piece in _pieces(numbers, layers):
            views = [layers[number].view for number in piece]
            own_keys = [measurable(keys, view) for view in views]
            stack = stack_layers(views, gram_before=gram)
            values = measure(stack, dict.fromkeys(key for own in own_keys for key in own))
            # one transfer: on a GPU each one waits for all that was asked before
            measured = torch.stack(list(values.values())).tolist() if values else []
            columns = dict(zip(values, measured, strict=True))
            for place, number in enumerate(piece):
                results[number].values = {key: columns[key][place] for key in own_keys[place]}
                results[number].moment = stack.moment[place] if with_moment else None
            computed = vars(stack).get("unit_gram")  # None if no metric asked for it
            gram = None if computed is None else computed[-1:]
    return results


def _stackable(layers: Sequence[Layer]) -> list[list[int]]:
    """Indices of layers that can be stacked: of one shape and site; the final norm goes with the blocks."""
    stacks: dict[tuple, list[int]] = {}
    for number, layer in enumerate(layers):
        site = AFTER_BLOCK if layer.site == FINAL_NORM else layer.site
        stacks.setdefault((site, *layer.view.tokens.shape), []).append(number)
    return list(stacks.values())


def _pieces(numbers: Sequence[int], layers: Sequence[Layer]) -> Iterator[Sequence[int]]:
    """The indices in pieces whose largest arrays have as many numbers as suit the device, or one layer each."""
    views = [layers[number].view for number in numbers]
    tokens = views[0].tokens.shape[1]
    largest = max([2 * tokens**2, *(view.attention.numel() for view in views if view.attention is not None)])
    most = STACK_NUMBERS if views[0].tokens.device.type == "cpu" else GPU_STACK_NUMBERS
    size = max(1, most // largest)
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
