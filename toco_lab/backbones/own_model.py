"""An own `nn.Module` as an encoder: tokens per layer, read at named parts of it.

    model = adapt(net, layers=["blocks.0", "blocks.1", "blocks.2"], norm="norm")

What `adapt` gives has the form of a timm model in stages (`stages`): it announces each grid with its blocks, channels
and stride. So everything that reads an encoder reads it, and there is no second way through the package. Each block is
a `TokenLayer`: during a pass, the output of a named part goes through its token layer, which gives the patches as a map
(B, D, h, w), and back into the network in the layout it had. The network computes what it always did.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from toco_lab.backbones.interfaces import Encoder
from toco_lab.backbones.modes import evaluating
from toco_lab.files import did_you_mean
from toco_lab.words import counted

MOST_PREFIX_TOKENS = 16  # looked for before the patches: a class token, a distillation token, registers
TOKENS, FIRST, LAST = "tokens (B, P + N, D)", "a map (B, D, h, w)", "a map (B, h, w, D)"  # layouts of an output


class TokenLayer(nn.Module):
    """Reads what one part of an own model gives: prefix tokens and a map of patch tokens; hooks on it see both.

    Attributes:
        name: Of the part in the own model.
        layout: `TOKENS`, `FIRST` or `LAST`.
        num_prefix: Tokens before the patches.
        width: D.
        side: Of a patch in pixels.
    """

    def __init__(self, name: str, layout: str, num_prefix: int, width: int, side: int) -> None:
        super().__init__()
        self.name, self.layout, self.num_prefix, self.width, self.side = name, layout, num_prefix, width, side
        self.prefix = nn.Identity()  # hooks on it see the prefix tokens (B, P, D)

    def forward(self, output: Tensor, size: Sequence[int]) -> Tensor:
        """The patches as a map (B, D, h, w).

        Raises:
            ValueError: If the output is not that of an image of `size`.
        """
        grid = (size[0] // self.side, size[1] // self.side)
        if self.layout != TOKENS:
            return output.permute(0, 3, 1, 2) if self.layout == LAST else output
        if output.ndim != 3 or output.shape[1] != self.num_prefix + grid[0] * grid[1]:
            raise ValueError(
                f"part {self.name!r} gives {tuple(output.shape)} for an image of {size[0]} x {size[1]} pixels, not "
                f"{self.num_prefix} + {grid[0]} x {grid[1]} tokens"
            )
        self.prefix(output[:, : self.num_prefix])
        return output[:, self.num_prefix :].mT.unflatten(2, grid)

    def back(self, output: Tensor, patches: Tensor) -> Tensor:
        """The output with these patches, (B, D, h, w), in its own layout.

        A copy: what the network then changes in place, an activation for example, was read before.
        """
        if self.layout == TOKENS:
            return torch.cat([output[:, : self.num_prefix], patches.flatten(2).mT], dim=1)
        return (patches.permute(0, 2, 3, 1) if self.layout == LAST else patches).clone()


class OwnModel(Encoder):
    """An own network in the form of a timm model in stages; `adapt` makes it.

    Attributes:
        network: The own network; it is not copied, and its weights are these.
        stages: Token layers, grouped by grid and width, in the order in which an image meets them.
        final: The token layer of the final norm; None if there is none.
        num_prefix_tokens: Tokens before the patches. The first one is the class token.
        num_classes: Logits that the network gives; 0 if it gives none.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[TokenLayer],
        final: TokenLayer | None,
        call: Callable[[nn.Module, Tensor], Any],
        statistics: tuple[Sequence[float], Sequence[float]],
        num_classes: int,
    ) -> None:
        """See `adapt`."""
        super().__init__()
        self.network, self._call, self.final = network, call, final
        self._layers = list(layers)
        grouped: list[list[TokenLayer]] = []
        for layer in layers:
            if not grouped or (layer.width, layer.side) != (grouped[-1][0].width, grouped[-1][0].side):
                grouped.append([])
            grouped[-1].append(layer)
        self.stages = nn.ModuleList(nn.ModuleList(group) for group in grouped)
        self.feature_info = [
            {"module": f"stages.{number}", "num_chs": group[0].width, "reduction": group[0].side}
            for number, group in enumerate(grouped)
        ]
        self.pretrained_cfg = {"mean": tuple(statistics[0]), "std": tuple(statistics[1])}
        self.num_features = (final or layers[-1]).width
        self.num_prefix_tokens = layers[-1].num_prefix
        self.cls_token = True if self.num_prefix_tokens else None
        self.num_classes = num_classes

    @property
    def norm(self) -> nn.Module | None:
        """The final norm, a part of the network."""
        return None if self.final is None else self.network.get_submodule(self.final.name)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C).

        Raises:
            ValueError: If the network gives none.
        """
        with self._reading(image.shape[-2:]):
            logits = _logits(self._call(self.network, image))
        if logits is None:
            raise ValueError(f"{type(self.network).__name__} gives no logits (B, C)")
        return logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Nothing: the network keeps its activations as it always did."""

    def forward_features(self, image: Tensor) -> Tensor:
        """The final patch tokens, (B, D, h, w): after the final norm, where there is one."""
        found: list[Tensor] = []
        hook = (self.final or self._layers[-1]).register_forward_hook(lambda _, __, output: found.append(output))
        try:
            with self._reading(image.shape[-2:]):
                self._call(self.network, image)
        finally:
            hook.remove()
        return found[-1]

    @contextmanager
    def prefix_tokens(self) -> Iterator[list[Tensor]]:
        """Collect the prefix tokens (B, P, D) of every layer, then of the final norm, in the passes made inside."""
        if not self.num_prefix_tokens:
            yield []
            return
        found: list[Tensor] = []
        with ExitStack() as stack:
            for layer in [*self._layers, self.final or self._layers[-1]]:
                hook = layer.prefix.register_forward_hook(lambda _, __, output: found.append(output))
                stack.callback(hook.remove)
            yield found

    @contextmanager
    def _reading(self, size: Sequence[int]) -> Iterator[None]:
        """Inside, the output of each named part goes through its token layer."""
        with ExitStack() as stack:
            for layer in self._layers if self.final is None else [*self._layers, self.final]:

                def read(_: nn.Module, __: Any, output: Any, layer: TokenLayer = layer) -> Any:
                    raw = cast(Tensor, first_tensor(output))
                    raw = layer.back(raw, layer(raw, size))
                    return raw if isinstance(output, Tensor) else type(output)([raw, *output[1:]])

                stack.callback(self.network.get_submodule(layer.name).register_forward_hook(read).remove)
            yield


def adapt(
    network: nn.Module,
    layers: Sequence[str],
    *,
    norm: str | None = None,
    prefix_tokens: int | None = None,
    channels_last: bool | None = None,
    image_size: int = 224,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    call: Callable[[nn.Module, Tensor], Any] = lambda network, image: network(image),
) -> OwnModel:
    """Read an own network as an encoder: over-smoothing, token maps, Grad-CAM and, under `ToCo`, CAMs.

    One pass over a grey image finds out what each layer gives; what cannot be read is said at once.

    Args:
        network: Takes images (B, 3, H, W). It is not copied.
        layers: Names of its parts whose outputs are tokens (B, P + N, D), or maps (B, D, h, w) or (B, h, w, D): its
            blocks, as a rule. `dict(network.named_modules())` lists all names.
        norm: Name of the norm that the last tokens go through, if there is one.
        prefix_tokens: Tokens before the patches, P; the first one is taken for the class token. None finds the
            smallest number that leaves a square.
        channels_last: Whether maps are (B, h, w, D); None finds it out.
        image_size: Side of the square images of the first pass, in pixels. Other sizes may follow if the network takes
            them.
        mean: Of the colours, in 0..1, by which images for this network are normalised.
        std: Likewise.
        call: How the network is called with images.

    Raises:
        ValueError: For a name that is no part, a part that gives no tokens or takes no part in the pass, tokens that
            are no square, or a map that can be read in two ways.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> model = adapt(net, layers=["0", "2"], image_size=64)
        >>> model.feature_info
        [{'module': 'stages.0', 'num_chs': 8, 'reduction': 16}]
    """
    if not layers or isinstance(layers, str):
        raise ValueError(f"layers must be a list of names of parts of the network, got {layers!r}")
    names = [*layers] if norm is None else [*layers, norm]
    known = dict(network.named_modules())
    for name in names:
        if name not in known:
            raise ValueError(f"{type(network).__name__} has no part {name!r}{did_you_mean(name, known)}")
    outputs, logits = first_pass(network, names, image_size, call)
    if absent := [name for name in names if name not in outputs]:
        raise ValueError(f"part {absent[0]!r} of {type(network).__name__} takes no part in a pass over an image")
    read = {
        name: _token_layer(name, output, image_size, prefix_tokens, channels_last)
        for name, output in outputs.items()  # in the order in which an image meets them
    }
    final = None if norm is None else read[norm]
    own = [layer for name, layer in read.items() if name != norm]
    if len({layer.num_prefix for layer in read.values()}) > 1:
        found = ", ".join(f"{layer.name} {layer.num_prefix}" for layer in read.values())
        raise ValueError(f"layers differ in the number of tokens before the patches: {found}. Give prefix_tokens")
    return OwnModel(network, own, final, call, (mean, std), 0 if logits is None else logits.shape[1])


@torch.no_grad()
def first_pass(
    network: nn.Module, names: Sequence[str], image_size: int, call: Callable[[nn.Module, Tensor], Any]
) -> tuple[dict[str, Any], Tensor | None]:
    """What each part gives for a grey image, in the order of the pass, and the logits if there are some."""
    like = next(network.parameters(), None)
    if like is None:
        raise ValueError(f"{type(network).__name__} has no parameters: an encoder has some")
    image = torch.zeros(1, 3, image_size, image_size, device=like.device, dtype=like.dtype)
    outputs: dict[str, Any] = {}
    with evaluating(network), ExitStack() as stack:
        for name in names:
            hook = network.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: outputs.update({name: output})
            )
            stack.callback(hook.remove)
        try:
            output = call(network, image)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{type(network).__name__} cannot be run on an image of {image_size} x {image_size} pixels: {reason}. "
                "Give the image_size that it takes"
            ) from error
    return outputs, _logits(output)


def _token_layer(
    name: str, output: Any, image_size: int, prefix_tokens: int | None, channels_last: bool | None
) -> TokenLayer:
    """How to read a part that gave this output for a square image."""
    raw = first_tensor(output)
    shape = () if raw is None else tuple(raw.shape)
    if len(shape) == 3 and shape[0] == 1:
        prefix, side = _square(name, shape[1], image_size, prefix_tokens)
        return TokenLayer(name, TOKENS, prefix, shape[2], image_size // side)
    grids = {FIRST: shape[2:], LAST: shape[1:3]} if len(shape) == 4 else {}
    layouts = [
        layout
        for layout, (rows, columns) in grids.items()
        if rows == columns and image_size % rows == 0 and channels_last in (None, layout == LAST)
    ]
    if len(layouts) > 1:
        raise ValueError(f"the output {shape} of part {name!r} can be read in two ways: give channels_last")
    if not layouts:
        what = f"a tensor {shape}" if shape else f"a {type(output).__name__}"
        raise ValueError(
            f"part {name!r} gives {what} for an image of {image_size} x {image_size} pixels: neither {TOKENS}, nor "
            f"{FIRST}, nor {LAST} whose patches fill the image"
        )
    width, rows = (shape[1], shape[2]) if layouts[0] == FIRST else (shape[3], shape[1])
    return TokenLayer(name, layouts[0], 0, width, image_size // rows)


def _square(name: str, tokens: int, image_size: int, prefix_tokens: int | None) -> tuple[int, int]:
    """Tokens before the patches, and the side of the square of patches."""
    tried = range(MOST_PREFIX_TOKENS + 1) if prefix_tokens is None else [prefix_tokens]
    for prefix in tried:
        side = math.isqrt(max(0, tokens - prefix))
        if side and side**2 == tokens - prefix and image_size % side == 0:
            return prefix, side
    before = f"up to {counted(MOST_PREFIX_TOKENS, 'token')}" if prefix_tokens is None else counted(tried[0], "token")
    raise ValueError(
        f"part {name!r} gives {counted(tokens, 'token')} for an image of {image_size} x {image_size} pixels: without "
        f"{before} before the patches they are no square that divides the image. Give prefix_tokens or image_size"
    )


def first_tensor(output: Any) -> Tensor | None:
    """The tensor among what a part gives: itself, or the first of a tuple or list; None if there is none."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def _logits(output: Any) -> Tensor | None:
    """Logits (B, C) among what a network gives: itself, its attribute `logits`, or None."""
    logits = getattr(output, "logits", output)
    logits = first_tensor(logits)
    return logits if logits is not None and logits.ndim == 2 else None
