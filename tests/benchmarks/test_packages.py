"""Benchmark beside other packages: they give the same."""

from benchmarks import packages


def test_others_give_the_same(monkeypatch):
    """Maps and scores of others are ours; where pytorch-grad-cam is not installed, all but its."""
    if packages.missing():
        ours = packages.ATTRIBUTIONS[packages.GRAD_CAM]
        monkeypatch.setattr(packages, "their_grad_cam", lambda model, batches, index: ours(model, batches[0], index))
    setting = packages.Setting("vit_tiny_patch16_224", 64, images=2, batch=2, masks=3)
    model, batches = packages.make_subject(setting)
    attention = [block.attn.fused_attn for block in model.blocks]
    packages.their_rollout(model, batches)
    assert attention == [block.attn.fused_attn for block in model.blocks]
    table = packages.measure(setting, 1).set_index("what")
    assert table["difference"].max() < 1e-4 and (table["to_ours"] > 0).all()
    assert table["to_forward"].isna().tolist() == [False, False, False, True]
    assert "| mIoU |" in "\n".join(packages.section(table.reset_index()))
