"""Permutohedral-lattice bilateral filter in plain torch: CPU and GPU, nothing to compile.

A Gaussian filter in a d-dimensional feature space costs one product per pair of pixels. The lattice (Adams, Baek and
Davis, "Fast high-dimensional filtering using the permutohedral lattice", 2010; used for dense CRFs by Kraehenbuehl and
Koltun, 2011) splats every pixel onto the d + 1 corners of the simplex around it, blurs along the d + 1 lattice axes and
slices the result back: linear in pixels. It approximates the Gaussian: about half its height, similar in shape.

All three steps are sums over short lists of weighted rows, so each is one `embedding_bag`: all channels at once, no
temporary, and the same order of summation every time (an `index_add` on a GPU has none).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def spatial_features(height: int, width: int, sigma_xy: float, device: torch.device | str | None = None) -> Tensor:
    """Pixel positions as filter features.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        sigma_xy: Standard deviation of the filter in pixels, > 0.
        device: Where to build them.

    Returns:
        (1, 2, N), N = height * width row-major: column / sigma_xy, row / sigma_xy.
    """
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y]).reshape(1, 2, -1) / sigma_xy


def bilateral_features(image: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """Pixel positions and colours as filter features.

    Args:
        image: (B, 3, H, W), any dtype, values in [0, 255].
        sigma_xy: Standard deviation in pixels, > 0.
        sigma_rgb: Standard deviation in grey levels, > 0.

    Returns:
        (B, 5, N) float32, N = H * W: x, y over `sigma_xy`; r, g, b over `sigma_rgb`.
    """
    batch, _, height, width = image.shape
    position = spatial_features(height, width, sigma_xy, image.device).expand(batch, -1, -1)
    return torch.cat([position, image.float().flatten(2) / sigma_rgb], dim=1)


class Lattice:
    """The lattice of a batch of images: built once from the features, then filters any values.

    Images share one lattice but no vertex, because the image index is part of a vertex's key.
    """

    def __init__(self, features: Tensor, *, compact: bool = True) -> None:
        """Find the vertices around every pixel and the neighbours of every vertex.

        Args:
            features: (B, d, N) positions in units of the filter's standard deviation.
            compact: Count the vertices and keep no more rows than that. On a GPU the count waits for the device;
                False keeps the upper bound N (d + 1) B and never waits. The result is the same.

        Raises:
            ValueError: If `features` is not a non-empty (B, d, N), or spans so many standard deviations that a vertex
                does not fit a 63-bit key (checked with `compact` only, because the check waits for the device too).
        """
        if features.ndim != 3 or 0 in features.shape:
            raise ValueError(f"features must be a non-empty (B, d, N), got {tuple(features.shape)}")
        self.shape = features.shape
        keys, strides, weights = _simplices(features.detach().float(), check_range=compact)
        pixels, corners = weights.shape  # P = B * N, d + 1

        ordered, order = keys.flatten().sort()
        rank = F.pad((ordered[1:] != ordered[:-1]).cumsum(0), (1, 0))  # (P (d+1),) vertex of each sorted corner
        count = int(rank[-1]) + 1 if compact else ordered.numel()
        index_type = torch.int32 if ordered.numel() < 2**31 else torch.int64  # half the traffic where it fits

        vertex = torch.empty_like(order).scatter_(0, order, rank)
        self._slice = vertex.view(pixels, corners).to(index_type), weights / (1 + 2.0 ** (1 - corners))
        first = torch.searchsorted(rank, torch.arange(count, device=rank.device))
        self._splat = (order // corners).to(index_type), weights.flatten()[order], first.to(index_type)

        unused = torch.iinfo(torch.int64).max  # sorts last, equals no key
        table = torch.full((count,), unused, device=keys.device).scatter_(0, rank, ordered)
        self._blur = [_neighbours(table, step, index_type) for step in _axis_steps(strides)]

    def filter_rows(self, rows: Tensor) -> Tensor:
        """Filter values stored one pixel per row, the layout the lattice works in.

        Args:
            rows: (B * N, C) float32, image-major.

        Returns:
            (B * N, C), not normalised: divide by the filtered ones for a weighted mean.

        Raises:
            ValueError: If the number of rows is not that of the pixels.
        """
        batch, _, pixels = self.shape
        if rows.ndim != 2 or len(rows) != batch * pixels:
            raise ValueError(f"rows {tuple(rows.shape)} do not fit features {tuple(self.shape)}: need (B * N, C)")
        members, weights, first = self._splat
        rows = _bag(members, rows, weights, first)  # (M, C)
        for neighbours, taps in self._blur:
            rows = _bag(neighbours, rows, taps)
        members, weights = self._slice
        return _bag(members, rows, weights)

    def normalise(self) -> None:
        """Turn the filter F into n F(n .) with n = 1 / sqrt(F(1)), per pixel: the symmetric form of a CRF's kernel."""
        ones = self._slice[1].new_ones(len(self._slice[1]), 1)
        norm = (self.filter_rows(ones) + 1e-20).rsqrt()  # (B N, 1)
        members, weights, first = self._splat
        self._splat = members, weights * norm.flatten()[members], first
        self._slice = self._slice[0], self._slice[1] * norm

    def filter(self, values: Tensor) -> Tensor:
        """Filter every channel of every image.

        Args:
            values: (B, C, N) float32.

        Returns:
            (B, C, N), not normalised.

        Raises:
            ValueError: If B or N differ from those of the features.
        """
        batch, _, pixels = self.shape
        if values.ndim != 3 or (values.shape[0], values.shape[2]) != (batch, pixels):
            raise ValueError(f"values {tuple(values.shape)} do not fit features {tuple(self.shape)}: need (B, C, N)")
        rows = self.filter_rows(values.transpose(1, 2).reshape(batch * pixels, -1))
        return rows.view(batch, pixels, -1).transpose(1, 2)


def bilateral_filter(image: Tensor, values: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Sum of the values around each pixel, weighted by nearness in position and colour.

    Args:
        image: (B, 3, H, W), values in [0, 255].
        values: (B, C, H, W).
        sigma_rgb: Standard deviation in grey levels.
        sigma_xy: Standard deviation in pixels.

    Returns:
        (B, C, H, W) float32, not normalised.

    Raises:
        ValueError: If the sizes of `image` and `values` differ.
    """
    lattice = Lattice(bilateral_features(image, sigma_xy, sigma_rgb))
    return lattice.filter(values.float().flatten(2)).view_as(values)


def _bag(indices: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Weighted sum of the listed rows, one output row per list."""
    return F.embedding_bag(indices, rows, offsets, per_sample_weights=weights.to(rows.dtype), mode="sum")


def _simplices(features: Tensor, *, check_range: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of the simplex around each pixel: keys (P, d+1) int64, strides (d+1,), barycentric weights (P, d+1).

    A key is the mixed-radix number of the image index and the first d lattice coordinates (all d + 1 sum to 0); it is
    linear in the coordinates, so a neighbour's key is a constant away.
    """
    batch, d, pixels = features.shape
    device = features.device
    axes = torch.arange(1, d + 1, device=device)
    unit = (d + 1) * math.sqrt(2 / 3) / torch.sqrt((axes * (axes + 1)).float())
    scaled = features.transpose(0, 1).reshape(d, -1) * unit[:, None]  # (d, P)
    suffix = F.pad(scaled.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))  # sum over j >= i, last row 0
    elevated = suffix - F.pad(axes[:, None] * scaled, (0, 0, 1, 0))  # (d+1, P), columns sum to 0

    # Nearest lattice point with all coordinates multiples of d + 1, then the order of the remainders.
    nearest = torch.round(elevated / (d + 1))
    excess = nearest.sum(0).long()  # multiples of d + 1 too many
    remainder = elevated - nearest * (d + 1)
    rank = _descending_rank(remainder) + excess
    wrap = (rank < 0).long() - (rank > d).long()
    rank = rank + wrap * (d + 1)
    point = (nearest.long() + wrap) * (d + 1)

    # Barycentric weights are the gaps between the remainders in descending order.
    gap = torch.empty_like(elevated).scatter_(0, rank, (elevated - point) / (d + 1))
    weights = torch.cat([gap[d:] + 1 - gap[:1], (gap[:-1] - gap[1:]).flip(0)])  # (d+1, P)

    coordinates = point[:d]
    margin = 2 * d  # a corner lies at most d from the point, its neighbour d further
    extent = coordinates.amax(1) - coordinates.amin(1) + 2 * margin + 1
    if check_range and batch * extent.double().prod() >= 2.0**62:
        raise ValueError(
            f"features {tuple(features.shape)} span {extent.tolist()} lattice steps: too many for a "
            "64-bit key; use larger sigmas"
        )
    # (d+1,): of the coordinates, then of the image index; writing the 1 by `strides[0] = 1` would wait for a GPU
    strides = F.pad(extent.cumprod(0), (1, 0), value=1)
    images = torch.arange(batch * pixels, device=device) // pixels
    offset = coordinates - (coordinates.amin(1) - margin)[:, None]
    first = (offset * strides[:d, None]).sum(0) + images * strides[d]

    # Corner k is corner k - 1 plus one in every coordinate, less d + 1 in the coordinate of rank d + 1 - k.
    strides = torch.cat([strides[:d], strides.new_zeros(1)])
    stride_by_rank = torch.empty_like(rank).scatter_(0, rank, strides[:, None].expand_as(rank))
    steps = strides.sum() - (d + 1) * stride_by_rank[1:].flip(0)  # (d, P)
    keys = torch.cat([first[None], steps]).cumsum(0)  # (d+1, P)
    return keys.t().contiguous(), strides, weights.t().contiguous()


def _descending_rank(values: Tensor) -> Tensor:
    """Rank of each row (n, P) in descending order, column by column; of equal values the first row ranks first.

    The few rows are compared in pairs: two sorts along an axis that is not the last take ten times as long.
    """
    rank = torch.zeros_like(values, dtype=torch.int64)
    for row in range(len(values) - 1):
        above = values[row + 1 :] > values[row]
        rank[row] += above.sum(0)
        rank[row + 1 :] += ~above
    return rank


def _axis_steps(strides: Tensor) -> list[Tensor]:
    """Difference of the keys of two vertices adjacent along each of the d + 1 axes."""
    return list(strides.sum() - len(strides) * strides)


def _neighbours(table: Tensor, step: Tensor, index_type: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows and taps (0.5, 1, 0.5) of the blur along one axis, both (M, 3); an absent neighbour gets tap 0."""
    own = torch.arange(len(table), device=table.device)
    indices, taps = [own], [torch.ones_like(own, dtype=torch.float32)]
    for wanted in (table + step, table - step):
        place = torch.searchsorted(table, wanted).clamp_(max=len(table) - 1)
        exists = table[place] == wanted
        indices.append(torch.where(exists, place, own))
        taps.append(exists * 0.5)
    return torch.stack(indices, 1).to(index_type), torch.stack(taps, 1)
