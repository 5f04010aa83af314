"""Parity with arrays computed by the authors' code: every file of the goldens folder, each to its documented tolerance.

The folder is read from the environment variable TOCO_GOLDENS (default: `shared/goldens` beside the project); other
cases of the same kind can be put there: every size and constant comes from the files.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toco_lab.backbones.pixels import denormalise
from toco_lab.config import IGNORE_INDEX, Config
from toco_lab.data.classes import PALETTE
from toco_lab.data.colours import JITTER, ColourDraws
from toco_lab.data.views import ViewDraws, apply_views
from toco_lab.evaluation.prediction import multi_scale_segmentation
from toco_lab.evaluation.scores import confusion_matrix, iou_scores, label_f1
from toco_lab.method import cam, labels
from toco_lab.method.batch import Batch
from toco_lab.method.crf import dense_crf
from toco_lab.method.crops import sample_local_crops
from toco_lab.method.lattice import bilateral_filter
from toco_lab.method.losses import affinity_mask, ctc_loss, ptc_loss, reg_loss, seg_loss
from toco_lab.method.model import ToCo
from toco_lab.method.present import PresentClasses
from toco_lab.method.refine import par, refine_cam
from toco_lab.method.step import LocalViews, compute_losses
from toco_lab.training.learner import Learner, train_step
from toco_lab.training.optimiser import learning_rate, set_learning_rate
from toco_lab.training.released import export_released, import_released, released_name

GIVEN = os.environ.get("TOCO_GOLDENS")
GOLDENS = Path(GIVEN or Path(__file__).parents[3] / "shared" / "goldens")
pytestmark = pytest.mark.skipif(  # a folder that was asked for must be there
    not GIVEN and not GOLDENS.is_dir(), reason=f"no golden arrays at {GOLDENS}; TOCO_GOLDENS names another folder"
)
NO_CASE = ("grad/", "proj/")  # keys of model_forward that belong to tests of their own
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cases(name: str) -> list[str]:
    """The cases a file holds: what stands before the slash in its keys."""
    path = GOLDENS / f"{name}.npz"
    if not path.is_file():
        return ["no file"]
    with np.load(path, allow_pickle=False) as file:
        return list(dict.fromkeys(key.split("/")[0] for key in file.files if "/" in key and key[:5] not in NO_CASE))


def load(name: str) -> dict[str, torch.Tensor]:
    """Arrays of one file as tensors: floats as they are, integers as int64; `meta` stays a NumPy string."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return {
        key: value
        if value.dtype.kind == "U"
        else torch.from_numpy(np.array(value) if value.dtype.kind == "f" else value.astype(np.int64))
        for key, value in arrays.items()
    }


def meta(arrays: dict) -> dict:
    return json.loads(str(arrays["meta"]))


def close(actual, expected, *, rel: float = 0.0, absolute: float = 0.0) -> None:
    """max|difference| within `rel` of the largest expected magnitude, or within `absolute`."""
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert torch.equal(actual.isnan(), expected.isnan())
    actual, expected = actual.nan_to_num(), expected.nan_to_num()
    error = (actual - expected).abs().max().item()
    assert error <= max(rel * expected.abs().max().item(), absolute), f"{error:.2e}"


def tiny_config(**changes) -> Config:
    """The sizes of tiny_model.npz, with the released behaviour."""
    sizes = meta(load("model_forward"))
    assert sizes["ln_eps"] == 1e-6 and sizes["qkv_bias"], "timm's ViT has these two built in"
    return (
        Config(
            pretrained=False,
            backbone="vit_base_patch16_224",
            image_size=sizes["img"],
            patch_size=sizes["patch"],
            embed_dim=sizes["embed"],
            depth=sizes["depth"],
            num_heads=sizes["heads"],
            mlp_ratio=sizes["mlp_ratio"],
            num_classes=sizes["K"] - 1,
            aux_layer=sizes["aux"],
            decoder_width=sizes["hid"],
            head_hidden=sizes["ph"],
            head_bottleneck=sizes["pb"],
            head_out=sizes["po"],
            teacher_momentum=sizes["mom"],
            crop_size=4 * sizes["patch"],  # views are given in the files; these two only have to be valid
            local_crop_size=2 * sizes["patch"],
            ctc_temperature=sizes["ctc_temp"],
            seg_start_step=0,
        )
        .released()
        .replace(**{"seg_start_step": 0} | changes)
    )


def ordered(scales: list[float]) -> tuple[float, ...]:
    """Scale 1 first, as it always runs; float32 decimals as they were meant."""
    return (1.0, *(round(scale, 6) for scale in scales if scale != 1.0))


def tiny_model(cfg: Config | None = None) -> ToCo:
    model = ToCo(cfg or tiny_config())
    report = import_released(model, {f"module.{name}": value for name, value in load("tiny_model").items()})
    assert report.missing == []
    assert all(name.startswith("encoder.head.") for name in report.unexpected)
    return model


def released_grads(model: ToCo) -> dict[str, torch.Tensor]:
    """Gradients under the authors' names; parameters without one are left out."""
    return {released_name(name): p.grad for name, p in model.named_parameters() if p.grad is not None}


def without_key_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    """Leave the key third of attention biases out: its true gradient is 0, so Adam amplifies rounding noise there."""
    if not name.endswith("attn.qkv.bias"):
        return value
    third = len(value) // 3
    return torch.cat([value[:third], value[2 * third :]])


# --- the model --------------------------------------------------------------------------------------------------------


def test_released_names_survive_a_round_trip():
    state, model = load("tiny_model"), ToCo(tiny_config())
    report = import_released(model, state)
    exported = export_released(model, report.unused)
    assert exported.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(exported[name], value), name


@pytest.mark.parametrize("tag", cases("model_forward"))
def test_model_forward(tag):
    golden, model = load("model_forward"), tiny_model()
    out = model(golden[f"{tag}/input"])
    ours = {
        "cls": out.logits,
        "cls_aux": out.aux_logits,
        "seg": out.seg_logits,
        "fmap": out.features.patch_tokens,
        "fmap_aux": out.features.aux_patch_tokens,
        "cls_token": out.features.class_token,
        "cam": out.cam,
        "cam_aux": out.cam_aux,
    }
    checked = [name for name in ours if f"{tag}/{name}" in golden]
    assert {"cls", "seg", "fmap"} <= set(checked)
    for name in checked:
        close(ours[name], golden[f"{tag}/{name}"], rel=1e-5, absolute=1e-5)
    if f"{tag}/tokens_in" in golden:
        size = model.patch_size
        rows, columns = (edge // size * size for edge in golden[f"{tag}/input"].shape[-2:])
        tokens = model.encoder._pos_embed(model.encoder.patch_embed(golden[f"{tag}/input"][..., :rows, :columns]))
        close(tokens, golden[f"{tag}/tokens_in"], rel=1e-5, absolute=1e-5)


def test_model_gradients():
    golden, model = load("model_forward"), tiny_model()
    weights = {key.removeprefix("grad/"): value for key, value in golden.items() if key.startswith("grad/")}
    out = model(golden["native/input"])
    scalar = sum(
        (weights[key] * value).sum()
        for key, value in [("R_cls", out.logits), ("R_cls_aux", out.aux_logits), ("R_seg", out.seg_logits)]
    )
    scalar = scalar + 0.01 * (weights["R_fmap"] * out.features.patch_tokens).sum()
    close(scalar.detach(), weights["scalar"].reshape(()), rel=1e-5)
    scalar.backward()
    grads = released_grads(model)
    compared = [name for name in weights if not name.startswith("R_") and name != "scalar"]
    assert compared
    for name in compared:
        close(without_key_bias(name, grads[name]), without_key_bias(name, weights[name]), rel=5e-5, absolute=1e-7)


def test_projection_heads_and_teacher():
    golden, model = load("model_forward"), tiny_model(tiny_config(teacher_momentum=0.5))
    model.teacher_momentum = float(golden["proj/momentum"])
    model.update_teacher()
    exported = export_released(model)
    for name in (key for key in golden if key.startswith("proj/ema/")):
        close(exported[name.removeprefix("proj/ema/")], golden[name], rel=1e-5, absolute=1e-7)
    tokens = torch.cat(
        [
            model.encode(golden["proj/global"].flatten(0, 1)).class_token,
            model.encode(golden["proj/local"].flatten(0, 1)).class_token,
        ]
    )
    teacher = model.teacher_head(tokens[: len(golden["proj/teacher"])].detach())
    close(teacher, golden["proj/teacher"], rel=1e-5, absolute=1e-5)
    student = model.projection_head(tokens)
    close(student.detach(), golden["proj/student"], rel=1e-5, absolute=1e-5)
    (student * golden["proj/R"]).sum().backward()
    grads = released_grads(model)
    assert not any(name.startswith("proj_head_t") for name in grads)
    expected = {key.removeprefix("proj/grad/"): value for key, value in golden.items() if key.startswith("proj/grad/")}
    assert expected
    for name, value in expected.items():
        if name in grads:
            close(without_key_bias(name, grads[name]), without_key_bias(name, value), rel=5e-5, absolute=1e-7)
        else:
            assert value.abs().max() == 0 or name == "encoder.pos_embed", name


@pytest.mark.parametrize("tag", cases("multi_scale_cam"))
def test_multi_scale_cam(tag):
    golden, model = load("multi_scale_cam"), tiny_model()
    scales = ordered(golden["scales"].tolist())
    plain = model.encode(golden[f"{tag}/input"]).detach()
    for given in (None, plain):
        cams = cam.multi_scale_cam(model, golden[f"{tag}/input"], scales, plain=given)
        close(cams.cam, golden[f"{tag}/cam"], absolute=2e-5)
        close(cams.cam_aux, golden[f"{tag}/cam_aux"], absolute=2e-5)


@pytest.mark.parametrize("fusion", ["voc", "coco"])
def test_multi_scale_segmentation(fusion):
    golden, model = load("multi_scale_seg"), tiny_model()
    logits = multi_scale_segmentation(model, golden["input"], ordered(golden["scales"].tolist()), fusion=fusion)
    close(logits, golden[f"seg_{fusion}"], rel=1e-5, absolute=1e-5)


# --- labels and crops -------------------------------------------------------------------------------------------------


def test_labels():
    golden = load("labels")
    maps, label, box = golden["cam"], golden["cls_label"], golden["img_box"]
    background, low, high = (golden[f"{name}_thre"].item() for name in ("bkg", "low", "high"))
    assert torch.equal(labels.mask_by_label(maps, label), golden["valid_cam"])
    present = PresentClasses.of(label)
    cam_of_present, one_threshold = present.gather(maps), {"low": background, "high": background}
    assert torch.equal(labels.confident_label(cam_of_present, present, **one_threshold), golden["label_bkg"])
    boxed = labels.confident_label(cam_of_present, present, **one_threshold, valid_box=box)
    assert torch.equal(boxed, golden["label_box_only"])
    confident = labels.confident_label(cam_of_present, present, low=low, high=high, valid_box=box)
    assert torch.equal(confident, golden["label_ignore_mid"])
    assert torch.equal(labels.region_mask(cam_of_present, present, low=low, high=high), golden["roi_mask"])


@pytest.mark.parametrize("suffix", ["", "2"])
def test_affinity_mask(suffix):
    golden = load("labels")
    expected = golden[f"aff_mask{suffix}"]
    assert torch.equal(affinity_mask(golden[f"aff_label_in{suffix}"]).long(), expected)


def test_local_crops():
    golden = load("crop_from_roi")
    torch.manual_seed(int(golden["torch_seed"]))
    crops = sample_local_crops(
        golden["roi_mask"],
        crop_size=int(golden["crop_size"]),
        num_crops=int(golden["crop_num"]),
        candidates="not_foreground",
        content="double_foreground",
        min_content=0.2,
    )
    assert torch.equal(crops.top, golden["top"])
    assert torch.equal(crops.left, golden["left"])
    assert torch.equal(crops.flags, golden["flags"])


# --- losses -----------------------------------------------------------------------------------------------------------


def test_ptc_loss():
    golden = load("ptc_loss")
    tokens = golden["tokens"].requires_grad_()
    loss = ptc_loss(tokens, golden["mask"])
    close(loss.detach(), golden["loss"], rel=1e-5)
    close(torch.autograd.grad(loss, tokens)[0], golden["grad"], rel=1e-5)
    close(
        ptc_loss(tokens, torch.full_like(golden["mask"], IGNORE_INDEX)).detach(), golden["loss_all_ignored"], rel=1e-5
    )
    others = ~torch.eye(golden["mask"].shape[-1], dtype=torch.bool)
    loss = ptc_loss(tokens, torch.where(others, 1, IGNORE_INDEX).expand_as(golden["mask"]))
    close(loss.detach(), golden["loss_all_positive"], rel=1e-5)
    close(torch.autograd.grad(loss, tokens)[0], golden["grad_all_positive"], rel=1e-5)


@pytest.mark.parametrize("case", cases("ctc_loss"))
def test_ctc_loss(case):
    golden = load("ctc_loss")
    student, teacher = (golden[f"{case}/{name}"].requires_grad_() for name in ("student", "teacher"))
    loss = ctc_loss(
        student, teacher, golden[f"{case}/flags"], temperature=float(golden[f"{case}/temp"]), negative_only_term=True
    )
    tolerance = {"absolute": 1e-7} if case == "all_positive" else {"rel": 1e-5}
    close(loss.detach(), golden[f"{case}/loss"], **tolerance)
    for actual, name in zip(torch.autograd.grad(loss, (student, teacher)), ("student", "teacher"), strict=True):
        close(actual, golden[f"{case}/grad_{name}"], **tolerance)


@pytest.mark.parametrize("case", cases("seg_loss"))
def test_seg_loss(case):
    golden = load("seg_loss")
    logits, expected = golden[f"{case}/logits"].requires_grad_(), golden[f"{case}/loss"]
    loss = seg_loss(logits, golden[f"{case}/label"])
    if expected.isnan():
        assert loss.isfinite()  # the released code gives NaN for an empty half, with a finite gradient
    else:
        close(loss.detach(), expected, rel=1e-5)
    close(torch.autograd.grad(loss, logits)[0], golden[f"{case}/grad"], rel=1e-5)


def test_energy_loss():
    golden = load("energy_loss")
    logits = golden["logits"].requires_grad_()
    loss = reg_loss(
        logits,
        denormalise(golden["img_norm"], MEAN, STD),
        golden["label"],
        golden["img_box"],
        weight=float(golden["weight"]),
        sigma_rgb=float(golden["sigma_rgb"]),
        sigma_xy=float(golden["sigma_xy"]),
        scale=float(golden["scale_factor"]),
    )
    close(loss.detach().reshape(1), golden["loss"], rel=1e-5)
    close(torch.autograd.grad(loss, logits)[0], golden["grad_logits"], rel=1e-4)


def test_bilateral_filter():
    golden = load("energy_loss")
    sigma_rgb, sigma_xy = golden["bf_sigma"].tolist()
    filtered = bilateral_filter(golden["bf_image"], golden["bf_in"], sigma_rgb=sigma_rgb, sigma_xy=sigma_xy)
    close(filtered, golden["bf_out"], rel=1e-5)


# --- refinement -------------------------------------------------------------------------------------------------------


def test_par():
    golden = load("par")
    image01 = denormalise(golden["input_norm"], MEAN, STD).byte().float() / 255
    close(image01, golden["image01"], absolute=1e-6)
    settings = {"dilations": tuple(golden["dilations"].tolist()), "num_iter": int(golden["num_iter"])}
    close(par(golden["par_image"], golden["par_masks"], **settings), golden["par_out"], absolute=1e-5)
    close(par(golden["par_image"], golden["par_masks_small"], **settings), golden["par_out_small"], absolute=1e-5)
    present = PresentClasses.of(golden["cls_label"])
    label = refine_cam(
        golden["image01"],
        present.gather(golden["valid_cam"]),
        present,
        low=golden["low_thre"].item(),
        high=golden["high_thre"].item(),
        valid_box=golden["img_box"],
        **settings,
    )
    assert (label != golden["refined_label"]).sum() <= 2


@pytest.mark.parametrize("case", ["q_1iter", "q_10iter", "q_alt"])
def test_dense_crf(case):
    golden = load("dense_crf")
    settings = {
        "q_1iter": {"iterations": 1},
        "q_10iter": {"iterations": 10},
        "q_alt": {
            "iterations": 5,
            "gaussian_sigma_xy": 3,
            "gaussian_weight": 3,
            "bilateral_sigma_xy": 40,
            "bilateral_sigma_rgb": 13,
            "bilateral_weight": 10,
        },
    }[case]
    q = dense_crf(golden["image"].permute(2, 0, 1), golden["prob"][None], **settings)[0]
    close(q, golden[case], absolute=1e-4 if case == "q_1iter" else 1e-3)
    assert (q.argmax(0) == golden[case].argmax(0)).double().mean() >= 0.998


# --- optimiser, evaluation, colours -----------------------------------------------------------------------------------


def test_lr_schedule():
    golden = load("lr_schedule")
    cfg = Config(
        steps=int(golden["max_iter"]),
        warmup_steps=int(golden["warmup_iter"]),
        schedule="drop",
        learning_rate=golden["base_lr"].item(),
        warmup_ratio=golden["warmup_ratio"].item(),
        poly_power=golden["power"].item(),
    )
    ours = [[learning_rate(cfg, step), 10 * learning_rate(cfg, step)] for step in golden["iters"].tolist()]
    np.testing.assert_allclose(ours, golden["lr"].numpy(), rtol=1e-12)


def test_adamw_trajectory():
    golden = load("adamw_traj")
    cfg = Config(
        steps=int(golden["max_iter"]),
        warmup_steps=int(golden["warmup_iter"]),
        schedule="drop",
        warmup_ratio=golden["warmup_ratio"].item(),
        poly_power=golden["power"].item(),
        weight_decay=golden["weight_decay"].item(),
        learning_rate=golden["lr"][0].item(),
    )
    parameters = [torch.nn.Parameter(value.clone()) for value in golden["p0"]]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "lr_factor": lr / golden["lr"][0].item()}
            for p, lr in zip(parameters, golden["lr"].tolist(), strict=True)
        ],
        betas=cfg.betas,
        weight_decay=cfg.weight_decay,
        fused=True,
    )
    for step, grads in enumerate(golden["grads"]):
        set_learning_rate(optimizer, cfg, step)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        close(torch.stack([p.detach() for p in parameters]), golden["traj"][step], rel=1e-5)


def test_evaluation_scores():
    golden = load("evaluate")
    num_classes = int(golden["num_classes"])
    names = sorted(key for key in golden if key.startswith("gt"))
    total = sum(confusion_matrix(golden[name.replace("gt", "pred")], golden[name], num_classes) for name in names)
    assert torch.equal(total, golden["hist"])
    present, over_all = (iou_scores(total, over=over) for over in ("present", "all"))
    close(present.iou, golden["iou"], rel=1e-9)
    close(present.miou, golden["miou"], rel=1e-9)
    close(over_all.miou, golden["format_tabs_mean"], rel=1e-9)
    close(present.pixel_accuracy, golden["pAcc"], rel=1e-9)
    close(present.mean_accuracy, golden["mAcc"], rel=1e-9)
    close(label_f1(golden["y_true"], golden["y_pred"]), golden["f1"], rel=1e-6)


def test_palette():
    assert np.array_equal(PALETTE, load("colormap")["cmap"].numpy())


# --- three steps of training ------------------------------------------------------------------------------------------


def test_train_trace():
    golden = load("train_trace")
    m = meta(golden)
    energy = m["energy"]
    cfg = tiny_config(
        learning_rate=m["lr"],
        weight_decay=m["wt_decay"],
        w_ptc=m["w_ptc"],
        w_ctc=m["w_ctc"],
        w_seg=m["w_seg"],
        w_reg=m["w_reg"],
        ctc_temperature=m["temp"],
        warmup_steps=m["warmup_iter"],
        steps=m["max_iter"],
        warmup_ratio=m["warmup_ratio"],
        poly_power=m["power"],
        betas=m["betas"],
        high_threshold=m["high_thre"],
        low_threshold=m["low_thre"],
        teacher_momentum=m["momentum"],
        cam_scales=ordered(m["cam_scales"]),
        reg_scale=energy["scale_factor"],
        reg_scale_factor=energy["weight"],
        reg_sigma_rgb=energy["sigma_rgb"],
        reg_sigma_xy=energy["sigma_xy"],
    )
    model = tiny_model(cfg).train()
    learner = Learner.of(model, cfg)
    batch = Batch(
        names=[""] * len(golden["inputs"]),
        image=golden["inputs"],
        view2=golden["global2"],
        local_source=golden["inputs"],
        image_label=golden["cls_label"],
        valid_box=golden["img_box"],
    )
    views = LocalViews(golden["locals"].flatten(0, 1), golden["flags"])
    start = tiny_model(cfg)
    region = compute_losses(start, batch, cfg, 0, views=views).region
    assert torch.equal(region, golden["step0/roi_mask"])
    for i in range(len(golden["loss_terms"])):
        step = m["first_global_step"] + i
        output = train_step(learner, batch, cfg, step, views=views)
        close(torch.tensor([group["lr"] for group in learner.optimizer.param_groups]), golden["lr"][i], rel=1e-6)
        differing = (output.pseudo_label != golden[f"step{i}/refined_label"]).sum()
        assert differing <= 2
        assert torch.equal(output.token_label, golden[f"step{i}/pseudo_label_aux"])
        terms = output.terms
        for name, expected in zip(
            ("cls", "cls_aux", "ptc", "ctc", "seg", "reg", "total"), golden["loss_terms"][i], strict=True
        ):
            close(getattr(terms, name), expected, rel=1e-4 if name == "reg" else 2e-5)
        if i == 0:
            present = PresentClasses.of(batch.image_label)
            dense = cam.multi_scale_cam(start, batch.image, cfg.cam_scales, present=present).dense()
            for found, name in ((dense.cam, "cams"), (dense.cam_aux, "cams_aux")):
                close(found, labels.mask_by_label(golden[f"step0/{name}"], golden["cls_label"]), absolute=2e-5)
            grads = released_grads(model)
            expected = {k.removeprefix("step0/grad/"): v for k, v in golden.items() if k.startswith("step0/grad/")}
            assert expected
            for name, value in expected.items():
                if name in grads:
                    close(without_key_bias(name, grads[name]), without_key_bias(name, value), rel=1e-4, absolute=1e-9)
                else:
                    assert value.abs().max() == 0 or name == "encoder.pos_embed", name
        exported = export_released(
            model, {k: v for k, v in load("tiny_model").items() if k.startswith("encoder.head.")}
        )
        for j, name in enumerate(np.load(GOLDENS / "train_trace.npz")["param_names"].tolist()):
            if name.endswith("attn.qkv.bias"):
                continue  # the sums include the key third
            total, absolute = golden["param_checksums"][i, j].tolist()
            value = exported[name].double()
            assert abs(value.sum().item() - total) <= 1e-4 * absolute, name
            assert abs(value.abs().sum().item() - absolute) <= 1e-4 * absolute, name
    final = {key.removeprefix("final/"): value for key, value in golden.items() if key.startswith("final/")}
    assert set(final) == set(exported)
    for name, value in final.items():
        close(without_key_bias(name, exported[name]), without_key_bias(name, value), absolute=1e-4)


# --- training views ---------------------------------------------------------------------------------------------------


def colour_draws(given: dict) -> ColourDraws:
    names = [list(JITTER)[number] for number in given["order"]] if given["jitter"] else []
    jitter = tuple((name, given["factors"][list(JITTER).index(name)]) for name in names)
    return ColourDraws(jitter, given["grey"], given["blur"], given["solarise"])


def view_draws(given: dict, size: tuple[int, int]) -> tuple[ViewDraws, ViewDraws]:
    """What the file says of one image, without the flips and colours of its views, and with them."""
    geometry = ViewDraws(
        scaled=(int(given["ratio"] * size[0]), int(given["ratio"] * size[1])),
        pad=tuple(given["pad"]),
        start=tuple(given["start"]),
        view2_box=tuple(given["view2"]),
        mirror=given["flip"],
    )
    views = {"": "view1", "local_": "local", "view2_": "view2"}
    colours = {f"{prefix}colours": colour_draws(given[f"{view}_colours"]) for prefix, view in views.items()}
    flips = {"flip": "view1_colours", "own_flip": "local_colours", "view2_flip": "view2_colours"}
    return geometry, replace(geometry, **colours, **{field: given[view]["flip"] for field, view in flips.items()})


@pytest.mark.parametrize("case", cases("train_views"))
def test_train_views(case):
    golden = load("train_views")
    m = meta(golden)
    side = m["crop_size"]
    cfg = Config().released().replace(crop_size=side, local_crop_size=2)
    image = golden[f"{case}/image"].numpy().astype(np.uint8)
    geometry, draws = view_draws(m["cases"][int(case)], image.shape[:2])
    plain, views = (apply_views(cfg, image, each, MEAN, STD) for each in (geometry, draws))
    assert plain.valid_box.tolist() == views.valid_box.tolist() == golden[f"{case}/box"].tolist()
    for view, name in ((plain.image, "crop"), (plain.view2, "view2_geometry")):
        apart = (denormalise(view, MEAN, STD).permute(1, 2, 0) - golden[f"{case}/{name}"]).abs()
        assert apart.max() <= 1 + 1e-3 and apart.mean() <= 0.1, name
    for view, name in ((views.image, "view1"), (views.local_source, "local"), (views.view2, "view2")):
        apart = (denormalise(view, MEAN, STD).permute(1, 2, 0) - golden[f"{case}/{name}"]).abs()
        assert apart.mean() <= 1.5 and (apart <= 6).float().mean() >= 0.99, name
