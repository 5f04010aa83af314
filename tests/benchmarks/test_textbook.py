"""The yardstick of the training benchmark: the textbook step has the losses and gradients of the fast one, whole and by
part, and the floor has its encoder passes.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import measure, run, textbook, training_step
from toco_lab.backbones.pixels import denormalise
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.method import cam, labels, losses, refine, step
from toco_lab.method.batch import Batch
from toco_lab.method.cam import Cams
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.training.learner import Learner, train_step

ROOT = Path(__file__).resolve().parents[2]
# padded images (the valid box is smaller than the crop), three of them, one to three classes each, every term on
CFG = Config.preset("smoke").replace(
    scale_range=(0.85, 0.97), batch_size=3, seg_start_step=0, low_threshold=0.35, high_threshold=0.5, num_local_crops=4,
    crop_min_content=0.65, crop_max_negative=0.5, cam_scales=(1.0, 0.5, 1.5), warmup_steps=0,
)  # fmt: skip
RELEASED = CFG.released().replace(seg_start_step=0, crop_min_content=0.85)
BEFORE = CFG.replace(crop_candidates="uncertain", ctc_between="negative")
STEP = 3  # behind `aux_label_steps`: the pseudo label is that of the final CAM


@pytest.fixture(scope="module")
def batch() -> Batch:
    return next(iter(train_loader(CFG, *statistics(CFG))))


def statistics(cfg: Config) -> tuple:
    model = ToCo(cfg)
    return model.mean, model.std


def fresh(cfg: Config = CFG) -> ToCo:
    """A model whose terms all pull: random, its teacher apart from its student."""
    torch.manual_seed(0)
    model = ToCo(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def doubled(batch: Batch) -> Batch:
    return batch._map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@contextmanager
def float64(monkeypatch):
    """Float64 throughout: `float()`, with which a step asks for full precision, gives it."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def gradients(model: ToCo) -> dict[str, torch.Tensor]:
    """Gradient of every parameter, none counted as 0."""
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in model.named_parameters()
    }


def assert_equal_gradients(found: dict, expected: dict, *, relative: float) -> None:
    """Largest difference within `relative` of the largest gradient of the parameter, or 1e-4 of that of the model."""
    largest = max(value.abs().max() for value in expected.values())
    assert found.keys() == expected.keys() and largest > 1e-3
    for name, value in expected.items():
        error = (found[name] - value).abs().max()
        assert error <= relative * max(value.abs().max(), 1e-4 * largest), f"{name}: {error:.1e}"


# --- the whole step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [CFG, RELEASED], ids=["sound", "released"])
def test_losses_and_gradients_are_those_of_the_fast_step(cfg, monkeypatch):
    batch = next(iter(train_loader(cfg, *statistics(cfg))))
    assert (batch.valid_box[:, 1] - batch.valid_box[:, 0] < cfg.crop_size).all()
    assert (batch.image_label.sum(1) > 1).any() and len(batch.image_label.sum(1).unique()) > 1
    with float64(monkeypatch):
        models = fresh(cfg), fresh(cfg)
        fast = step.compute_losses(models[0], doubled(batch), cfg, STEP, generator=generator())
        plain = textbook.textbook_losses(models[1], doubled(batch), cfg, STEP, generator=generator())
        for output in (fast, plain):
            output.terms.total.backward()
    # nothing that is compared below is trivial
    assert {0, 255} < set(fast.pseudo_label.unique().tolist()) and {0, 255} < set(fast.token_label.unique().tolist())
    assert len(fast.region.unique()) == 3 and 0 < fast.views.flags[:, 2:].mean() < 1
    for name in ("pseudo_label", "token_label", "region"):
        assert torch.equal(getattr(plain, name), getattr(fast, name)), name
    for name in ("image", "flags"):
        assert torch.equal(getattr(plain.views, name), getattr(fast.views, name)), name
    for name in ("cam", "cam_aux"):
        expected = labels.mask_by_label(getattr(plain.cams, name), batch.image_label)
        torch.testing.assert_close(getattr(fast.cams.dense(), name), expected, rtol=0, atol=1e-9)
    for field in fields(fast.terms):
        value = getattr(fast.terms, field.name)
        assert field.name in ("distil", "ctc_ignored_share") or value != 0, field.name
        expected = getattr(plain.terms, field.name)  # the share of noise is NaN: neither has that filter on
        torch.testing.assert_close(expected, value, rtol=1e-8, atol=0, equal_nan=True, msg=field.name)
    assert_equal_gradients(gradients(models[1]), gradients(models[0]), relative=1e-7)


def test_equal_in_fp32_too(batch):
    models = fresh(), fresh()
    fast = step.compute_losses(models[0], batch, CFG, STEP, generator=generator())
    plain = textbook.textbook_losses(models[1], batch, CFG, STEP, views=fast.views)
    for output in (fast, plain):
        output.terms.total.backward()
    # 3e-5 where this was written; elsewhere a pixel may lie so near a threshold that it falls on its other side
    for field in fields(fast.terms):
        ours, theirs = getattr(fast.terms, field.name), getattr(plain.terms, field.name)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=0, equal_nan=True, msg=field.name)
    assert_equal_gradients(gradients(models[1]), gradients(models[0]), relative=1e-3)


def test_terms_that_have_not_begun_weigh_nothing(batch, monkeypatch):
    cfg = CFG.replace(seg_start_step=2, contrast_start_step=1, aux_label_steps=4)
    with float64(monkeypatch):
        for number, on in enumerate([{"cls", "cls_aux"}, {"ptc", "ctc"}, {"seg", "reg"}]):
            models = fresh(cfg), fresh(cfg)
            fast = step.compute_losses(models[0], doubled(batch), cfg, number, generator=generator())
            plain = textbook.textbook_losses(models[1], doubled(batch), cfg, number, generator=generator())
            for output in (fast, plain):
                output.terms.total.backward()
            for name in {*on, "total"}:
                torch.testing.assert_close(getattr(plain.terms, name), getattr(fast.terms, name), rtol=1e-8, atol=0)
            assert_equal_gradients(gradients(models[1]), gradients(models[0]), relative=1e-7)


def test_two_optimiser_steps_give_the_same_weights(batch, monkeypatch):
    with float64(monkeypatch):
        models = fresh(), fresh()
        begin = {name: value.detach().clone() for name, value in models[0].named_parameters()}
        learner, optimizer = Learner.of(models[0], CFG), textbook.textbook_optimizer(models[1], CFG)
        assert learner.optimizer.param_groups[0]["fused"] and not optimizer.param_groups[0]["fused"]
        for number in range(2):
            output = train_step(learner, doubled(batch), CFG, number)
            textbook.textbook_step(models[1], optimizer, doubled(batch), CFG, number, views=output.views)
    for (name, value), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        moved = (value - begin[name]).abs().max()
        assert moved > 1e-5 or name == "encoder.pos_embed", name
        assert (other - value).abs().max() <= 1e-6 * moved, name


@pytest.mark.parametrize(
    "change", [{"teacher": "none"}, {"w_distil": 0.1}, {"reg_gate": "exact"}, {"refine": False}, {"accumulate": 3}]
)
def test_additions_to_the_method_are_refused(change, batch):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"textbook step has {name} .* only, got {change[name]!r}"):
        textbook.textbook_losses(fresh(), batch, CFG.replace(**change), STEP)


# --- part by part -----------------------------------------------------------------------------------------------------


def test_attention_is_written_out_and_fused_again(batch, monkeypatch):
    model, calls = fresh(), []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    expected = model.encode(batch.image)
    assert len(calls) == CFG.depth
    with pytest.raises(KeyError), textbook.written_out_attention(model.encoder):
        found = model.encode(batch.image)
        raise KeyError
    assert len(calls) == CFG.depth
    for name in ("class_token", "patch_tokens", "aux_patch_tokens"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    model.encode(batch.image)
    assert len(calls) == 2 * CFG.depth


def test_multi_scale_cam(batch):
    model = fresh()
    expected = cam.multi_scale_cam(model, batch.image, (1.0, 0.5, 1.25), plain=model.encode(batch.image).detach())
    found = textbook.multi_scale_cam(model, batch.image, (1.0, 0.5, 1.25))
    torch.testing.assert_close(found.cam, expected.cam, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.cam_aux, expected.cam_aux, rtol=0, atol=2e-5)
    assert not torch.allclose(found.cam, found.cam_aux, atol=0.1)


def blobs(batch: Batch, num_classes: int = 6) -> Cams:
    """CAMs in [0, 1) with all shades between, in smooth blobs, unlike for the two heads."""
    coarse = torch.rand(2, len(batch.image), num_classes, 7, 7, generator=torch.Generator().manual_seed(5))
    maps = (cam.resize(maps, batch.image.shape[-2:]) for maps in coarse)
    return Cams(*maps, PresentClasses.of(torch.ones(len(batch.image), num_classes)))


def of_present(cams: Cams, image_label: torch.Tensor) -> Cams:
    """The same of the present classes alone."""
    present = PresentClasses.of(image_label)
    return Cams(present.gather(cams.cam), present.gather(cams.cam_aux), present)


# valid boxes: as it is, smaller than a crop, in a corner, everything, too low for a crop but wide
BOXES = [[10, 80, 5, 90], [40, 60, 30, 50], [0, 33, 60, 96], [0, 96, 0, 96], [70, 90, 0, 96]]


def boxed(batch: Batch) -> Batch:
    """Five images with those boxes; the last shows no class."""
    label = torch.tensor([[1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0] * 6])
    image, source = (torch.cat([views, views])[:5] for views in (batch.image, batch.local_source))
    return replace(
        batch, image=image, local_source=source, image_label=label.float(), valid_box=torch.tensor(BOXES), max_present=3
    )


@pytest.mark.parametrize("change", [{}, {"crops_in_valid_box": False}, {"num_local_crops": 40}])
@pytest.mark.parametrize("cfg", [CFG, RELEASED, BEFORE], ids=["sound", "released", "before"])
def test_regions_and_local_views(cfg, change, batch):
    batch, cfg = boxed(batch), cfg.replace(**change)
    cams = blobs(batch)
    few = of_present(cams, batch.image_label)
    region = textbook.region_masks(cams.cam_aux, batch.image_label, cfg)
    expected = labels.region_mask(few.cam_aux, few.present, low=cfg.low_threshold, high=cfg.high_threshold)
    assert torch.equal(region, expected) and len(region.unique()) == 3
    region[3] = 2  # no candidate at all
    found = textbook.local_views(batch, region, cfg, generator())
    assert (found.flags[4] == 255).all()  # the last image shows no class: nothing of it takes part
    assert same_views(found, step.local_views(batch, region, cfg, generator()))
    label = batch.image_label.clone()
    label[4, 0] = 1  # now its background counts
    batch = replace(batch, image_label=label)
    found = textbook.local_views(batch, region, cfg, generator())
    assert same_views(found, step.local_views(batch, region, cfg, generator()))
    assert {0, 1} | ({255} if cfg.ctc_between == "ignore" else set()) == set(found.flags[:, 2:].flatten().tolist())


def same_views(ours, theirs):
    """Whether two sets of local views are the same to the bit."""
    return torch.equal(ours.image, theirs.image) and torch.equal(ours.flags, theirs.flags)


@pytest.mark.parametrize("cfg", [CFG, RELEASED], ids=["sound", "released"])
def test_patch_token_contrast(cfg, batch):
    batch = boxed(batch)
    cams, grid = blobs(batch), (12, 12)
    few = of_present(cams, batch.image_label)
    expected = labels.token_labels(
        few.cam_aux, few.present, grid, batch.valid_box, low=cfg.low_threshold, high=cfg.high_threshold,
        patch_size=8, box_units=cfg.ptc_box_units,
    )  # fmt: skip
    label = textbook.token_labels(cams.cam_aux, batch, cfg, grid, 8)
    assert torch.equal(label, expected) and len(label.unique()) > 3
    tokens = torch.randn(5, 8, *grid, generator=generator()).requires_grad_()
    pairs = losses.ptc_terms(tokens, losses.affinity_mask(label)), textbook.ptc_terms(tokens, label)
    for name in ("loss", "positive_cosine", "negative_cosine"):
        torch.testing.assert_close(getattr(pairs[1], name), getattr(pairs[0], name), rtol=1e-5, atol=0)
    slopes = [torch.autograd.grad(terms.loss, tokens)[0] for terms in pairs]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-9)
    assert slopes[0].abs().max() > 1e-6


def test_no_pair_of_tokens():
    tokens = torch.randn(1, 4, 3, 3, requires_grad=True)
    terms = textbook.ptc_terms(tokens, torch.full((1, 3, 3), 255))
    assert terms.loss == 0.5 and terms.positive_cosine.isnan() and terms.negative_cosine.isnan()


def test_projections_encode_every_view(batch):
    model, shapes = fresh(), []
    views = step.LocalViews(batch.local_source[:, :, :32, :32].repeat(2, 1, 1, 1), torch.ones(3, 4))
    encode = model.encode
    model.encode = lambda image: shapes.append(image.shape[-1]) or encode(image)
    teacher, student = textbook.teacher_projections(model, batch), textbook.student_projections(model, batch, views)
    assert shapes == [96, 64, 96, 64, 32] and not teacher.requires_grad
    tokens = torch.cat([encode(view).class_token for view in (batch.image, batch.view2, views.image)])
    torch.testing.assert_close(student, model.projection_head(tokens), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(teacher, model.teacher_head(tokens[:6]), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(teacher, student[:6], atol=1e-3)


@pytest.mark.parametrize("temperature, negative_only_term", [(0.5, False), (1.0, True)])
def test_class_token_contrast(temperature, negative_only_term):
    flags = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 255, 1], [1, 1, 0, 255, 0]]).double()
    student = torch.randn(15, 8, generator=generator(), dtype=torch.float64).requires_grad_()
    teacher = torch.randn(6, 8, generator=generator(), dtype=torch.float64)
    expected = losses.ctc_loss(student, teacher, flags, temperature=temperature, negative_only_term=negative_only_term)
    found = textbook.ctc_loss(student, teacher, flags, temperature, negative_only_term)
    # the number of positives + 1e-4 is fp32 in `ctc_loss`
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
    slopes = [torch.autograd.grad(loss, student)[0] for loss in (expected, found)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-6, atol=1e-12)


def test_pixel_adaptive_refinement(rng):
    image, masks = torch.rand(2, 3, 13, 17), torch.rand(2, 4, 13, 17)
    found = textbook.par(image, masks, (1, 2, 24), 4)
    torch.testing.assert_close(found, refine.par(image, masks, dilations=(1, 2, 24), num_iter=4), rtol=1e-5, atol=1e-6)
    assert (found - masks).abs().max() > 0.1


@pytest.mark.parametrize("number", [0, STEP], ids=["auxiliary", "final"])
def test_pseudo_label(number, batch):
    batch, cfg = boxed(batch), CFG.replace(low_threshold=0.2, high_threshold=0.7)
    cams, (mean, std) = blobs(batch), statistics(cfg)
    pixels = denormalise(batch.image, mean, std)
    found = textbook.pseudo_label(cams, pixels, batch, cfg, number)
    assert torch.equal(found, step.pseudo_label(of_present(cams, batch.image_label), pixels, batch, cfg, number))
    assert {0, 1, 4, 5, 6, 255} <= set(found.unique().tolist())
    assert set(found[4].unique().tolist()) == {0, 255}  # without a class all is background, in the box


@pytest.mark.parametrize("values", [[0, 1, 2, 255], [0, 255], [1, 2, 255], [255]])
def test_segmentation_loss(values, rng):
    logits = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    label = torch.tensor(values)[torch.randint(len(values), (2, 6, 5))]
    both = losses.seg_loss(logits, label), textbook.seg_loss(logits, label)
    torch.testing.assert_close(both[1], both[0], rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in both]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-10, atol=1e-15)
    assert slopes[1].any() == (values != [255])


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_energy(scale, rng):
    cfg = CFG.replace(reg_scale_factor=1e-3, reg_scale=scale)
    logits = torch.randn(3, 4, 16, 20, requires_grad=True)
    pixels = 255 * cam.resize(torch.rand(3, 3, 4, 5), (16, 20))
    label = torch.tensor([0, 1, 3, 255])[torch.randint(4, (3, 16, 20))]
    box = torch.tensor([[0, 16, 0, 20], [4, 14, 2, 11], [0, 6, 5, 20]])
    both = (
        losses.reg_loss(logits, pixels, label, box, weight=1e-3, scale=scale),
        textbook.reg_loss(logits, pixels, label, box, cfg),
    )
    torch.testing.assert_close(both[1], both[0], rtol=1e-5, atol=0)
    slopes = [torch.autograd.grad(3 * loss, logits)[0] for loss in both]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-6 * slopes[0].abs().max().item())


# --- the floor and the benchmark --------------------------------------------------------------------------------------


def tokens_encoded(model: ToCo, run) -> list[int]:
    """Patches of each encoder pass of `run`, with gradient positive and without negative, sorted."""
    passes = []
    hook = model.encoder.blocks[0].register_forward_hook(
        lambda _, __, tokens: passes.append(len(tokens) * (tokens.shape[1] - 1) * (1 if tokens.requires_grad else -1))
    )
    run()
    hook.remove()
    return sorted(passes)


def test_floor_has_the_passes_of_the_fast_step(batch):
    model, number = fresh(), CFG.num_local_crops
    local = batch.local_source[:, :, :32, :32].repeat(number, 1, 1, 1)
    views = step.LocalViews(local, torch.ones(3, 2 + number))
    floor = tokens_encoded(model, lambda: textbook.floor(model, batch, CFG, local))
    counts = [3 * (side // 8) ** 2 for side in (96, 64)] + [3 * number * 16]
    assert [passed for passed in floor if passed > 0] == sorted(counts)
    # d(sum of normalised tokens) / d(bias of the norm) counts them, class tokens included
    tokens = sum(counts) + 3 * (2 + number)
    torch.testing.assert_close(model.encoder.norm.bias.grad, torch.full((CFG.embed_dim,), float(tokens)))
    fast = tokens_encoded(model, lambda: step.compute_losses(model, batch, CFG, STEP, views=views))
    plain = tokens_encoded(model, lambda: textbook.textbook_losses(model, batch, CFG, STEP, views=views))
    assert floor == fast
    # the textbook: the image thrice more (CAM, teacher, student), the second view once more
    assert sum(map(abs, plain)) == sum(map(abs, floor)) + 3 * counts[0] + counts[1]


def test_floor_wants_a_plain_vit(batch):
    with pytest.raises(ValueError, match="no plain ViT"):
        textbook.floor(torch.nn.Linear(1, 1), batch, CFG, batch.local_source)


def test_a_part_inside_another_counts_once(monkeypatch):
    class Work:
        def outer(self):
            spend(2)
            self.inner()

        def inner(self):
            spend(5)

    clock = [0.0]
    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])

    def spend(seconds):
        clock[0] += seconds

    work, untouched = Work(), Work.inner
    with measure.timed({"outer": [(Work, "outer")], "inner": [(Work, "inner")], "none": []}) as seconds:
        work.outer()
        work.inner()
        spend(11)
    assert seconds == {"outer": 7, "inner": 5, "none": 0} and Work.inner is untouched


def test_ratios_are_taken_within_a_round():
    whole = {"fast": [2.0, 4.0, 2.0], "textbook": [6.0, 4.0, 10.0], "floor": [1.0, 1.0, 1.0]}
    rows = [
        {"round": number, "step": name, "part": "whole", "seconds": spent}
        for name, all_spent in whole.items()
        for number, spent in enumerate(all_spent)
    ]
    rows += [{"round": number, "step": "textbook", "part": "PTC", "seconds": 1.0} for number in range(3)]
    table = training_step.summarise(pd.DataFrame(rows)).set_index(["step", "part"])
    textbook_row = table.loc["textbook", "whole"]
    assert textbook_row.to_dict() == {"seconds": 6, "least": 4, "most": 10, "to_fast": 3, "to_floor": 6}
    assert table.loc[("fast", "whole"), "to_floor"] == 2 and pd.isna(table.loc[("textbook", "PTC"), "to_fast"])


def test_every_part_of_a_step_takes_time_and_the_table_is_written(tmp_path, monkeypatch, capsys):
    settings = {"first": CFG.replace(batch_size=2), "other": CFG}
    monkeypatch.setattr(training_step, "CASE", replace(training_step.CASE, settings=settings))
    monkeypatch.setattr(training_step, "in_a_fresh_process", lambda *_: (300.0, 20.0))
    threads = torch.get_num_threads()
    try:
        for setting in ("other", "first"):
            run.main([f"training_step/{setting}", "--repeats", "1", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    table = pd.read_csv(tmp_path / "training_step.csv")
    assert table["setting"].unique().tolist() == ["first", "other"]  # the earlier one is kept
    for name in ("fast", "textbook"):
        rows = table[table["step"] == name].groupby("part")["seconds"].min()
        assert set(rows.index) == set(training_step.ORDER) and (rows > 0).all()
    text = (tmp_path / "training_step.md").read_text()
    assert text in capsys.readouterr().out
    assert "## first" in text and "| textbook | " in text and "| 300 | 20 |" in text
    with pytest.raises(SystemExit):
        run.main(["training_step/third"])
    assert "no setting third of training_step; there are: first, other" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_peak_memory_sees_what_a_step_takes_for_a_moment():
    """In a process of its own, as the benchmark measures: a long-lived one has freed memory that it takes again."""
    code = """
import torch
from benchmarks import training_step
from toco_lab.config import Config
steps = {"greedy": lambda: torch.ones(25_000_000), "modest": lambda: None}  # 100 MB, given back at once
training_step.make_steps = lambda cfg: steps
for name in ("modest", "greedy"):
    print(*training_step.peak_megabytes(Config.preset("smoke"), name))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    modest, greedy = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    assert modest[1] < 10 and 90 < greedy[1] < 130 and greedy[0] > 100 + greedy[1]
