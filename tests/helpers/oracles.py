"""Slow versions of the formulas, one loop per sum sign, written from the equations and sharing no code with toco_lab.

They work on small float64 tensors and are differentiable where a test needs the gradient.
"""

import itertools
import math

import numpy as np
import torch

NEIGHBOURS = [(dy, dx) for dy, dx in itertools.product((-1, 0, 1), repeat=2) if (dy, dx) != (0, 0)]


def affinity(label):
    """(B, h, w) -> (B, N, N) list of lists: 1 same, 0 different, 255 ignored."""
    table = []
    for image in label.flatten(1).tolist():
        table.append(
            [
                [255 if i == j or 255 in (a, b) else int(a == b) for j, b in enumerate(image)]
                for i, a in enumerate(image)
            ]
        )
    return torch.tensor(table)


def ptc(tokens, mask, similarity):
    """(loss, mean |cos| of positives, of negatives); the pairs of the whole batch are pooled."""
    used, absolute = {0: [], 1: []}, {0: [], 1: []}
    for image, relation in zip(tokens.flatten(2), mask.tolist(), strict=True):
        for i, row in enumerate(relation):
            for j, kind in enumerate(row):
                if kind == 255:
                    continue
                a, b = image[:, i], image[:, j]
                cosine = (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()
                used[kind].append(cosine.abs() if similarity == "absolute" else cosine)
                absolute[kind].append(abs(cosine.item()))
    pull = 1 - sum(used[1]) / (len(used[1]) + 1)
    push = sum(used[0]) / (len(used[0]) + 1)
    return 0.5 * pull + 0.5 * push, *(np.mean(absolute[k]) if absolute[k] else math.nan for k in (1, 0))


def ctc(student, teacher, flags, temperature, negative_only_term):
    """InfoNCE per image and teacher view, exponentials as written; flags 1 positive, 0 negative, 255 ignored."""
    batch, views = flags.shape
    losses = []
    for i in range(batch):
        positives = [j for j in range(views) if flags[i, j] == 1]
        total = 0.0
        for v in range(2):
            e = [torch.exp(teacher[v * batch + i] @ student[j * batch + i] / temperature) for j in range(views)]
            negative = sum((e[j] for j in range(views) if flags[i, j] == 0), torch.zeros((), dtype=student.dtype))
            total = total - sum(torch.log(e[j] / (e[j] + negative + 1e-4)) for j in positives)
            if negative_only_term:
                total = total - torch.log(1 / (1 + negative + 1e-4))
        losses.append(total / 2 / (len(positives) + 1e-4))
    return sum(losses) / batch


def crop_cosines(student, teacher, flags):
    """Mean cosine of the teacher's two global views with the local views of each kind (1, 0), one pair at a time."""
    batch, views = flags.shape
    found = {1: [], 0: [], 255: []}
    for i in range(batch):
        for j in range(2, views):
            for v in range(2):
                a, b = teacher[v * batch + i], student[j * batch + i]
                found[int(flags[i, j])].append(((a @ b) / (a @ a).sqrt() / (b @ b).sqrt()).item())
    return [np.mean(found[kind]) if found[kind] else math.nan for kind in (1, 0)]


def seg(logits, label):
    """Half the mean -log p over background pixels, half over foreground pixels; an empty half is 0."""
    halves = {True: [], False: []}
    for b, y, x in itertools.product(*map(range, label.shape)):
        if label[b, y, x] != 255:
            p = torch.exp(logits[b, :, y, x]) / torch.exp(logits[b, :, y, x]).sum()
            halves[int(label[b, y, x]) == 0].append(-torch.log(p[int(label[b, y, x])]))
    return sum((0.5 * sum(half) / len(half) for half in halves.values() if half), 0 * logits.sum())


def par(image, masks, dilations, num_iter):
    """PAR of one image: (3, h, w) and (C, h, w) numpy float64."""
    _, height, width = image.shape
    reach = np.array([(d * math.sqrt(2) if dy and dx else d) for d in dilations for dy, dx in NEIGHBOURS])
    position = -((reach / (reach.std(ddof=1) + 1e-8) / 0.3) ** 2)
    position = np.exp(position) / np.exp(position).sum()

    def around(y, x):
        return [
            (min(max(y + d * dy, 0), height - 1), min(max(x + d * dx, 0), width - 1))
            for d in dilations
            for dy, dx in NEIGHBOURS
        ]

    weights = {}
    for y, x in itertools.product(range(height), range(width)):
        colours = np.array([image[:, v, u] for v, u in around(y, x)])  # (n, 3)
        spread = colours.std(axis=0, ddof=1) + 1e-8
        score = -(((colours - image[:, y, x]) / spread / 0.3) ** 2).mean(axis=1)
        weights[y, x] = np.exp(score - score.max()) / np.exp(score - score.max()).sum() + 0.01 * position
    for _ in range(num_iter):
        masks = np.stack(
            [
                sum(w * masks[:, v, u] for w, (v, u) in zip(weights[y, x], around(y, x), strict=True))
                for y in range(height)
                for x in range(width)
            ],
            axis=1,
        ).reshape(len(masks), height, width)
    return masks


def lattice_filter(features, values):
    """Permutohedral filter of one image with a dict of vertices: features (N, d), values (N, C), numpy float64."""
    d = features.shape[1]
    vertices, corners = {}, []
    for feature, value in zip(features, values, strict=True):
        scaled = [f * (d + 1) * math.sqrt(2 / 3) / math.sqrt((i + 1) * (i + 2)) for i, f in enumerate(feature)]
        elevated = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(d + 1)]
        point = [round(e / (d + 1)) * (d + 1) for e in elevated]  # round half to even, as Python does
        # Ranks of the remainders in descending order; too large a sum is taken off the smallest remainders and so on.
        order = sorted(range(d + 1), key=lambda i: point[i] - elevated[i])
        excess = sum(point) // (d + 1)
        for i in order[d + 1 - excess :] if excess > 0 else order[:-excess]:
            point[i] -= (d + 1) * (1 if excess > 0 else -1)
        remainder = [e - p for e, p in zip(elevated, point, strict=True)]
        order = sorted(range(d + 1), key=lambda i: -remainder[i])
        rank = {i: r for r, i in enumerate(order)}
        for k in range(d + 1):  # the corner whose coordinates are all k modulo d + 1
            vertex = tuple(point[i] + (k if rank[i] <= d - k else k - d - 1) for i in range(d + 1))
            if k:
                weight = (remainder[order[d - k]] - remainder[order[d + 1 - k]]) / (d + 1)
            else:
                weight = 1 - (remainder[order[0]] - remainder[order[d]]) / (d + 1)
            corners.append((vertex, weight))
            vertices[vertex] = vertices.get(vertex, 0) + weight * value
    for axis in range(d + 1):

        def moved(vertex, sign, axis=axis):
            return tuple(c + sign * (d if i == axis else -1) for i, c in enumerate(vertex))

        vertices = {
            v: s + 0.5 * (vertices.get(moved(v, 1), 0) + vertices.get(moved(v, -1), 0)) for v, s in vertices.items()
        }
    slices = [weight * vertices[vertex] for vertex, weight in corners]
    return np.array([sum(slices[n : n + d + 1]) for n in range(0, len(slices), d + 1)]) / (1 + 2.0**-d)


def exact_gaussian(features, values):
    """What the lattice approximates: every pixel summed over every pixel."""
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)
    return np.exp(-distance / 2) @ values


def pixel_features(image, sigma_xy, sigma_rgb=None):
    """(3, H, W) numpy -> (N, 2) or, with sigma_rgb, (N, 5): x, y, r, g, b in standard deviations."""
    _, height, width = image.shape
    rows = []
    for y, x in itertools.product(range(height), range(width)):
        colour = [] if sigma_rgb is None else list(image[:, y, x] / sigma_rgb)
        rows.append([x / sigma_xy, y / sigma_xy, *colour])
    return np.array(rows)


def energy(pred, image, label, box, weight, sigma_rgb, sigma_xy):
    """(loss, released gradient) of the dense CRF energy at the size of its inputs, all numpy.

    pred (B, K, h, w), image (B, 3, h, w), label (B, h, w), box (B, 4) in these pixels.
    """
    loss, gradient = 0.0, np.zeros_like(pred)
    for b, (top, bottom, left, right) in enumerate(box):
        inside = np.zeros(label.shape[1:])
        inside[top:bottom, left:right] = 1
        gate = np.where(label[b] == 255, 1, np.maximum(inside - pred[b].max(axis=0), 0))
        rows = (pred[b] * inside).reshape(len(pred[b]), -1).T
        filtered = lattice_filter(pixel_features(image[b], sigma_xy, sigma_rgb), rows).T.reshape(pred[b].shape)
        loss -= weight * (pred[b] * inside * gate * filtered).sum() / len(pred)
        gradient[b] = -2 * weight * gate * filtered * inside / len(pred)
    return loss, gradient


def mean_field(image, prob, iterations, terms):
    """Dense CRF of one image: prob (K, H, W); terms are (weight, sigma_xy, sigma_rgb or None)."""
    unary = np.log(np.clip(prob, 1e-5, 1)).reshape(len(prob), -1).T  # (N, K)
    kernels = []
    for weight, sigma_xy, sigma_rgb in terms:
        features = pixel_features(image, sigma_xy, sigma_rgb)
        norm = 1 / np.sqrt(lattice_filter(features, np.ones((len(unary), 1))) + 1e-20)
        kernels.append((weight, features, norm))

    def softmax(z):
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    q = softmax(unary)
    for _ in range(iterations):
        q = softmax(unary + sum(w * norm * lattice_filter(f, norm * q) for w, f, norm in kernels))
    return q.T.reshape(prob.shape)
