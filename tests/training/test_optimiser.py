"""What learns, and when: frozen blocks, and heads that learn before the encoder does."""

import pytest
import torch

from toco_lab.backbones.kinds import blocks_of
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.learner import Learner, train_step
from toco_lab.training.loop import fit
from toco_lab.training.optimiser import encoder_factor

CFG = Config.preset("smoke")


def stepped(cfg, steps):
    """A learner after the given 0-based steps, and its weights before and after."""
    torch.manual_seed(0)
    learner = Learner.of(ToCo(cfg).train(), cfg)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    batch = next(iter(train_loader(cfg, learner.model.mean, learner.model.std)))
    for step in steps:
        train_step(learner, batch, cfg, step)
    return learner, before, learner.model.state_dict()


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_frozen_blocks_keep_their_weights_and_the_others_learn():
    cfg = CFG.replace(frozen_blocks=2)
    learner, before, after = stepped(cfg, [1])
    changed = moved(before, after)
    frozen = ("encoder.blocks.0", "encoder.blocks.1", "encoder.patch_embed", "encoder.cls_token", "encoder.pos_embed")
    assert not [name for name in changed if name.startswith(frozen)]
    learning = {name for name in after if name.startswith(("encoder.blocks.2", "encoder.blocks.3", "encoder.norm"))}
    assert learning and learning <= changed and "classifier.weight" in changed
    assert all(weight.grad is None for block in blocks_of(learner.model.encoder)[:2] for weight in block.parameters())


def test_frozen_blocks_change_no_gradient_of_the_others():
    whole, cut = (stepped(CFG.replace(frozen_blocks=n), [1])[0].model for n in (0, 2))
    for one, other in zip(blocks_of(whole.encoder)[2:], blocks_of(cut.encoder)[2:], strict=True):
        for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_more_frozen_blocks_than_there_are_and_other_backbones_are_refused():
    with pytest.raises(ValueError, match="frozen_blocks 5 is more than the 4 blocks"):
        ToCo(CFG.replace(frozen_blocks=5))
    with pytest.raises(ValueError, match="frozen_blocks is for plain ViTs"):
        CFG.replace(backbone="resnet18", frozen_blocks=1)


def test_the_encoder_waits_for_its_step_and_then_warms_up():
    cfg = CFG.replace(encoder_start_step=2, warmup_steps=2)
    assert [encoder_factor(cfg, step) for step in range(5)] == [0, 0, 0.5, 1, 1]
    assert [encoder_factor(CFG, step) for step in range(3)] == [1, 1, 1]
    learner, before, after = stepped(cfg, [0, 1])
    assert not [name for name in moved(before, after) if name.startswith("encoder.")]
    assert {"classifier.weight", "aux_classifier.weight", "decoder.conv3.weight"} <= moved(before, after)
    assert all(weight.grad is None for weight in learner.model.encoder.parameters())
    _, before, after = stepped(cfg, [0, 1, 2])
    assert [name for name in moved(before, after) if name.startswith("encoder.blocks.0")]
    rates = {group["name"]: group["lr"] for group in learner.optimizer.param_groups}
    assert rates["encoder"] == rates["encoder norms"] == 0 < rates["heads"]


def test_heads_first_killed_on_either_side_of_the_start_ends_with_the_same_weights(tmp_path):
    cfg = CFG.replace(encoder_start_step=2, checkpoint_every=1)
    whole = fit(cfg, RunDir.create(cfg, tmp_path / "whole"), progress=False).state_dict()
    for kept in (1, 3):
        run = RunDir.create(cfg, tmp_path / str(kept))

        def interrupt(model, step, last=kept + 1):
            if step == last:  # before its checkpoint: the one of the step before is the last
                raise KeyboardInterrupt
            return {}

        with pytest.raises(KeyboardInterrupt):
            fit(cfg.replace(val_every=1), run, validate=interrupt, progress=False)
        assert run.checkpoints()[-1] == run.checkpoint_path(kept)
        again = fit(cfg, run, progress=False).state_dict()
        assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_an_encoder_that_starts_after_the_last_step_never_learns(tmp_path):
    cfg = CFG.replace(encoder_start_step=CFG.steps)
    model = fit(cfg, RunDir.create(cfg, tmp_path), progress=False)
    torch.manual_seed(cfg.seed)
    first = ToCo(cfg).encoder.state_dict()
    assert all(torch.equal(value, first[name]) for name, value in model.encoder.state_dict().items())


def test_the_preset_of_few_photographs_has_crops_of_whole_tokens_and_heads_first():
    cfg = Config.preset("voc_vit_s")
    assert all(size % 14 == 0 for size in (cfg.crop_size, cfg.view2_side, cfg.local_crop_size))
    assert cfg.encoder_start_step <= cfg.contrast_start_step <= cfg.seg_start_step < cfg.steps
