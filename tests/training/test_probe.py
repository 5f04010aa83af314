"""Linear probing: heads that know the classes before the encoder moves, and nothing else that has changed."""

import pytest
import torch
from helpers.interrupted import made_in_two_parts

from toco_lab.config import Config
from toco_lab.data.loader import eval_samples
from toco_lab.experiment import open_run, train
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import initial_model
from toco_lab.training.loop import fit
from toco_lab.training.probe import fit_heads, probe_classifiers

CFG = Config.preset("smoke").replace(train_images=12)


def test_heads_learn_linear_labels_whatever_the_scale_of_a_channel():
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(2, 60, 5, generator=generator)
    labels = (pooled[0, :, :2] > 0).float()  # classes 0 and 1 are channels 0 and 1 of the first layer
    scaled = pooled * torch.tensor([1e-3, 1.0, 50.0, 1.0, 1.0])
    heads = fit_heads(scaled, labels)
    assert heads.shape == (2, 2, 5) and not heads.requires_grad
    right = ((scaled @ heads.mT > 0).float() == labels).float().mean((1, 2))
    assert right[0] > 0.95 > right[1]  # the second layer knows nothing of them
    torch.testing.assert_close(scaled @ heads.mT, pooled @ fit_heads(pooled, labels).mT, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [
    {}, {"pooling": "average"}, {"pooling": "max_and_class"}, {"aux_layer": -1},
    {"backbone": "resnet18", "patch_size": None, "embed_dim": None, "depth": None, "num_heads": None, "aux_layer": -2},
])  # fmt: skip
def test_both_classifiers_are_fitted_to_what_they_read_of_whole_images(changes):
    cfg = CFG.replace(**changes)
    torch.manual_seed(0)
    model = initial_model(cfg).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    samples = list(eval_samples(cfg.replace(val_images=0), model.mean, model.std, cfg.train_split))
    probe_classifiers(model, cfg, progress=False)
    after = model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "aux_classifier.weight"}
    with torch.no_grad():
        outputs = [model(sample.image[None]) for sample in samples]
    labels = torch.stack([sample.image_label for sample in samples])
    assert len(samples) == 12
    for logits in (torch.cat([one.logits for one in outputs]), torch.cat([one.aux_logits for one in outputs])):
        assert (logits > 0).float().eq(labels).float().mean() > 0.95  # twelve images, more channels than that
    read = torch.cat([model.pooled(one.features)[0] for one in outputs]).flatten(1)
    torch.testing.assert_close(after["classifier.weight"][:, :, 0, 0], fit_heads(read[None], labels)[0])


@pytest.mark.parametrize("labels", ["final", "aux"])
def test_afa_begins_with_a_probe_too(labels):
    cfg = CFG.replace(method="afa", afa_labels=labels, probe_heads=True)
    torch.manual_seed(0)
    model = initial_model(cfg).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe_classifiers(model, cfg, progress=False)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight"} | ({"aux_classifier.weight"} if labels == "aux" else set())
    samples = list(eval_samples(cfg.replace(val_images=0), model.mean, model.std, cfg.train_split))
    images = torch.stack([sample.image for sample in samples])
    shown = torch.stack([sample.image_label for sample in samples])
    with torch.no_grad():
        output = model(images, segment=False)
        assert (output.logits > 0).float().eq(shown).float().mean() > 0.95
        on_labels = model.cams(output.features)[0]  # the CAM is what its classifier says at each position
        read = output.features.labelled_tokens.amax((2, 3))
    head = model.aux_classifier or model.classifier
    torch.testing.assert_close(on_labels, head(output.features.labelled_tokens))
    torch.testing.assert_close(head.weight[:, :, 0, 0], fit_heads(read[None], shown)[0], rtol=1e-3, atol=1e-3)


def test_a_run_begins_with_them_and_continued_does_not_make_them_anew(tmp_path):
    cfg = CFG.replace(probe_heads=True, encoder_start_step=CFG.steps, head_lr_factor=0.0, checkpoint_every=2)
    torch.manual_seed(cfg.seed)
    wanted = initial_model(cfg).eval()
    probe_classifiers(wanted, cfg, progress=False)
    model = fit(cfg, RunDir.create(cfg, tmp_path / "still"), progress=False)  # no group of weights has a rate
    assert torch.equal(model.classifier.weight, wanted.classifier.weight)
    assert torch.equal(model.aux_classifier.weight, wanted.aux_classifier.weight)
    run = open_run(cfg.replace(head_lr_factor=10.0), tmp_path / "whole")
    train(run, progress=False)
    made_in_two_parts(run, tmp_path / "again", step=3)


def test_other_methods_have_no_such_heads():
    with pytest.raises(ValueError, match="probe_heads True has no effect: method 'tscam' does not read it"):
        CFG.replace(probe_heads=True, method="tscam", w_seg=0, w_reg=0)
