"""Pairs of frames to train on: which frames they are, with which label and motion."""

import numpy as np
import torch
from helpers.folders import MEAN, STD, toy

from toco_lab.data.clip_motion import clip_motion, true_motion
from toco_lab.data.loader import TrainSamples, train_loader
from toco_lab.data.readers import FRAMES, ClipReader, ToyReader, open_dataset
from toco_lab.data.toy_clips import make_clip
from toco_lab.method.batch import Batch
from toco_lab.method.flow import agreement, match_blocks, warp

CFG = toy(train_on_clips=True, w_temporal=0.1, batch_size=4, train_images=5)


def batches(cfg=CFG, **options) -> list[Batch]:
    return list(train_loader(cfg, MEAN, STD, **options))


def equal(first: Batch, second: Batch) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_the_images_of_a_training_split_are_frames_and_have_the_label_of_their_clip():
    reader = open_dataset(CFG, "train")
    assert isinstance(reader, ClipReader) and len(reader) == 5 * FRAMES
    assert type(open_dataset(CFG, "val")) is ToyReader
    for index in (0, 7, 19):
        clip, frame = make_clip(0, index // FRAMES, FRAMES, 96), index % FRAMES
        assert np.array_equal(reader.image(index), clip.image[frame])
        assert np.array_equal(reader.mask(index), clip.mask[frame])
        assert np.array_equal(reader.image_label(index), clip.image_label)
    assert reader.names[19] == "toy_train_clip_000002_frame_3"


def test_a_pair_is_two_neighbouring_frames_and_an_epoch_all_pairs():
    samples = TrainSamples(CFG, MEAN, STD)
    pairs = 5 * (FRAMES - 1)
    drawn = [samples.drawn(position) for position in range(2 * pairs)]
    assert all(later == (first[0] + 1, first[1]) for first, later in zip(drawn[::2], drawn[1::2], strict=True))
    assert sorted(index for index, _ in drawn[::2]) == [i for i in range(5 * FRAMES) if i % FRAMES < FRAMES - 1]
    assert drawn[0][0] != samples.drawn(2 * pairs)[0] or drawn[2][0] != samples.drawn(2 * pairs + 2)[0]


def test_both_frames_have_the_same_views_and_the_true_flow():
    for batch in batches():
        assert torch.equal(batch.valid_box[::2], batch.valid_box[1::2])
        assert torch.equal(batch.image_label[::2], batch.image_label[1::2])
        assert batch.flow.shape == (4, 2, 96, 96) and batch.holds.shape == (4, 96, 96)
        other = batch.image.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        found = warp(other, batch.flow)
        along, still = ((one - batch.image).abs().mean(1)[batch.holds].mean() for one in (found, other))
        assert along < 0.8 * still and batch.holds.float().mean() > 0.8  # grain is new in every frame
    assert batches(CFG.replace(w_temporal=0.0))[0].flow is None


def test_a_mirrored_pair_has_the_mirrored_flow_of_the_clip():
    """The toy views do nothing but mirror."""
    flipped = CFG.replace(flip_probability=1.0, view2_scale=(1.0, 1.0))
    plain, mirrored = batches(CFG.replace(flip_probability=0.0))[0], batches(flipped)[0]
    assert plain.names == mirrored.names and torch.equal(plain.image, mirrored.image.flip(-1))
    turned = mirrored.flow.flip(-1) * torch.tensor([-1.0, 1.0])[:, None, None]
    assert torch.equal(plain.flow, turned) and torch.equal(plain.holds, mirrored.holds.flip(-1))
    clip, frame = (int(part) for part in plain.names[0].removeprefix("toy_train_clip_").split("_frame_"))
    made = make_clip(0, clip, FRAMES, 96)
    assert np.array_equal(plain.flow[0].permute(1, 2, 0).numpy(), made.forward[frame])
    assert np.array_equal(plain.flow[1].permute(1, 2, 0).numpy(), made.backward[frame])
    assert np.array_equal(plain.holds[0].numpy(), ~made.occluded[frame])


def test_the_estimated_motion_is_that_of_the_two_frames_alone():
    clip = make_clip(0, 3, FRAMES, 96)
    frames = torch.from_numpy(clip.image[2:4]).permute(0, 3, 1, 2).float()
    there, back = match_blocks(frames[:1], frames[1:]), match_blocks(frames[1:], frames[:1])
    flow, holds = clip_motion(0, 3, 96, estimated=True)(2, 3)
    assert torch.equal(flow, there[0]) and torch.equal(holds, agreement(there, back)[0])
    true, seen = true_motion(clip)(2, 3)
    assert (flow - true).square().sum(0).sqrt()[seen & holds].mean() < 1.0


def test_a_continued_run_and_loader_processes_see_the_same_pairs():
    cfg = CFG.replace(clip_flow="estimated", steps=4)
    whole, rest = batches(cfg), batches(cfg.replace(num_workers=2), start_step=2)
    assert all(equal(a, b) for a, b in zip(whole[2:], rest, strict=True)) and len(rest) == 2
    assert not equal(whole[0], whole[1])
    share = batches(cfg, places=range(2, 4))
    assert all(torch.equal(a.flow[2:], b.flow) for a, b in zip(whole, share, strict=True))


def test_single_images_are_what_they_were():
    plain = batches(CFG.replace(train_on_clips=False, w_temporal=0.0))[0]
    assert plain.flow is None and plain.holds is None and plain.names[0].startswith("toy_train_0000")
