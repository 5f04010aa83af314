"""The command `new-project`: a folder of images becomes a config file that fits its size, and two lists."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from toco_lab.config import Config
from toco_lab.presets import DEIT_B, PRESETS, VIT_B
from toco_lab.words import counted, program

if TYPE_CHECKING:
    from toco_lab.data.project import Folder

CONFIG_NAME = "toco_lab.yaml"
SMALL = (
    "deit_small_patch16_224.fb_in1k", "vit_small_patch16_224.augreg_in21k_ft_in1k", "deit_tiny_patch16_224.fb_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
)  # fmt: skip
LARGE = (DEIT_B, VIT_B)
FEW = 3000  # training images: below, a pretrained ViT is trained as in the preset `voc_clip`, which was measured on 506
RECIPE = PRESETS["voc_clip"]
FEW_PASSES = 5  # by that recipe
PASSES, FEWEST_STEPS, MOST_STEPS = 40, 200, PRESETS["folder"]["steps"]  # how often training sees each image, and limits
_TOY_FIELDS = (  # what belongs to the backbone of the toy preset: its sizes, its heads, and the weights of its losses
    "backbone", "weights", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "normalisation",
    "decoder_width", "head_hidden", "head_bottleneck", "head_out", "w_ptc", "w_ctc", "w_seg", "w_reg",
)  # fmt: skip


def new_project(
    folder: tyro.conf.Positional[Path],
    backbone: str | None = None,
    weights: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Read a folder of your own images and write a config file that fits it; says what it assumes, and what comes next.

    The folder has images/, and labels.csv, masks/ or Annotations/, as docs/own_data.md shows; where images/ has a
    subfolder for each class, the labels are made from that. A folder without lists gets train.txt and val.txt, in which
    every class has its share.

    Args:
        folder: Of the images.
        backbone: timm's name; None takes one whose pretrained weights are on this machine, else the toy's small ViT.
        weights: File with the weights of that backbone; None leaves them to timm.
        out: Config file to write (.yaml); None takes toco_lab.yaml in the folder.
        overwrite: Replace a config file that is there. Lists and labels that are there are never changed.
    """
    from toco_lab.data.project import label_subfolders, read_folder, write_lists
    from toco_lab.runs.config_file import check_config_name, write_changes

    out = out or folder / CONFIG_NAME
    check_config_name(out)
    if out.suffix == ".json":
        raise ValueError(f"--out must end in .yaml, since JSON has no place for reasons, got {out}")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is there already: --overwrite replaces it, --out names another")
    if weights is not None and backbone is None:
        raise ValueError("--weights belong to a --backbone: name it as well")
    said = label_subfolders(folder)
    found = read_folder(folder)
    plan = Plan(found)
    plan.choose_backbone(backbone, weights)
    plan.choose_sizes()
    plan.choose_steps()
    plan.config()  # what does not fit together is said before anything is written
    said += write_lists(found)
    rest = "Every line may be changed; fields that are not here are those of the preset `folder`."
    write_changes(out, "folder", plan.changes, f"Made by `{program()} new-project` for {found.about()}. {rest}")
    said = [found.about(), *said, *plan.said, *found.warnings(), *plan.warnings(), f"wrote {out}"]
    print(*said, *_next_steps(folder, out), sep="\n")


def _next_steps(folder: Path, out: Path) -> list[str]:
    """The commands that come next."""
    file, images = shlex.quote(str(out)), shlex.quote(str(folder))
    commands = {
        f"data check {images}": "looks into every file",
        f"train --config {file} --dry-run": "how long it takes here, and how much memory",
        f"train --config {file}": "trains, scores, names the folder of the run (below: RUN)",
        "report RUN": "one page to read",
        f"predict RUN {images}/images": "CAMs and masks of any images",
    }
    width = max(map(len, commands))
    return ["next:", *(f"  {program()} {command:{width}}  # {about}" for command, about in commands.items())]


@dataclass
class Plan:
    """The config that fits a folder.

    Attributes:
        folder: What lies there.
        changes: Of each field that differs from the preset `folder` its value and the reason.
        said: What is assumed, in lines for a person.
    """

    folder: "Folder"
    changes: dict[str, tuple[Any, str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The folder itself."""
        cfg = self.folder.cfg
        self._set("data_root", cfg.data_root, "the folder of the images")
        self._set("label_source", cfg.label_source, "what says which classes an image shows")
        self._set("classes", list(self.folder.classes), "line k is number k of the masks; background is number 0")
        self._set("num_classes", len(self.folder.classes), "")

    def _set(self, name: str, value: Any, reason: str) -> None:
        self.changes[name] = value, reason

    def _value(self, name: str) -> Any:
        return self.changes[name][0] if name in self.changes else PRESETS["folder"].get(name, getattr(Config(), name))

    def config(self) -> Config:
        """The config, checked."""
        return Config.preset("folder").replace(**{name: value for name, (value, _) in self.changes.items()})

    @property
    def _is_toy(self) -> bool:
        return self._value("weights") == PRESETS["toy"]["weights"]

    @property
    def _is_gentle(self) -> bool:
        """Whether the recipe of few photographs is taken: it is one of twelve blocks."""
        is_vit = re.match(r"(vit|deit)_(tiny|small|base)_", self._value("backbone"))
        return bool(is_vit) and not self._is_toy and self.folder.num_train < FEW

    def warnings(self) -> list[str]:
        """What the backbone forbids to expect."""
        if not self._is_toy:
            return []
        return [
            "warning: the toy's small ViT has only seen toy scenes: this shows how everything works, not how good it "
            f"can be. With a network: --backbone {SMALL[0]} (88 MB, once)"
        ]

    def choose_backbone(self, backbone: str | None, weights: str | None) -> None:
        """The one that is asked for, else one whose weights are at hand."""
        import torch

        from toco_lab.backbones.at_hand import weights_at_hand
        from toco_lab.backbones.build import build_encoder
        from toco_lab.backbones.weights import find_weights

        self.gpu = torch.cuda.is_available()
        wanted = (RECIPE["backbone"], *((*LARGE, *SMALL) if self.gpu else (*SMALL, *LARGE)))
        if backbone is not None:
            build_encoder(Config.preset("folder").replace(backbone=backbone))  # raises for a name that timm lacks
            self._set("backbone", backbone, "as asked for")
            if weights is not None:
                self._set("weights", str(find_weights(weights).resolve()), "as asked for")
            here = weights is not None or weights_at_hand(backbone)
            origin = "as asked for" if here else "as asked for; timm downloads its weights when the run starts"
        elif name := next(filter(weights_at_hand, wanted), None):
            self._set("backbone", name, "its pretrained weights are on this machine")
            origin = "its pretrained weights are on this machine"
        else:
            reason = "the toy preset's small ViT: no pretrained backbone is on this machine"
            for place, name in enumerate(_TOY_FIELDS):
                self._set(name, PRESETS["toy"][name], "" if place else reason)
            origin = f"{reason}; it has its own loss weights"
        self.said.append(f"backbone   {self._value('backbone')}: {origin}")
        if self._value("backbone") == RECIPE["backbone"]:
            self._set("depth", RECIPE["depth"], "the CAM of the twelfth block lies on the background of some classes")
            self._set("aux_layer", RECIPE["aux_layer"], "")

    def choose_sizes(self) -> None:
        """Crops as large as images, backbone and machine allow; images are scaled so that a crop shows most of one."""
        in_name = re.search(r"patch(\d+)", self._value("backbone"))
        patch = self._value("patch_size") or (int(in_name[1]) if in_name else 32)  # 32: a Swin, ResNet or ConvNeXt
        shown = PRESETS["toy"]["crop_size"] if self._is_toy else 448 if self.gpu else 224
        most = shown // 2 if self._is_gentle else shown
        short = self.folder.short_side
        crop = max(min(most, short) // patch, -(-(64 if self._is_toy else 96) // patch)) * patch
        scale = crop / short
        why = "" if self.gpu or self._is_toy else ", no GPU"
        reason = f"images have a short side of {short} pixels (median){why}"
        local = max(-(-28 // patch), round(crop * 96 / 448 / patch)) * patch
        self._set("crop_size", crop, reason)
        self._set("local_crop_size", local, "as to the crop as on VOC")
        scales = [_rounded(0.6 * scale), _rounded(1.6 * scale)]
        self._set("scale_range", scales, "a crop shows a part of an image, or all")
        if self._is_gentle:
            self._set("eval_cam_size", 2 * crop, "CAMs are scored at twice the size of a crop")
        else:
            self._set("eval_cam_size", crop, "CAMs are scored at the size of a crop")
        self._set("eval_seg_scales", [_rounded(scale), _rounded(1.5 * scale)], "segmentation at 1 and 1.5 crops")
        if crop <= 224:
            dilations = list(PRESETS["toy"]["par_dilations"])
            self._set("par_dilations", dilations, "refinement looks less far in small crops")
        self.said.append(f"size       crops of {crop} pixels: {reason}")

    def choose_steps(self) -> None:
        """A number of passes over the images, within limits; the schedule is in proportion to VOC's."""
        images, usual = self.folder.num_train, 8 if self._is_toy or self._is_gentle else 4
        batch = max(2, min(usual, images))
        planned, fewest = (FEW_PASSES, RECIPE["steps"]) if self._is_gentle else (PASSES, FEWEST_STEPS)
        steps = min(max(-(-planned * images // batch), fewest), MOST_STEPS)
        passes = steps * batch / images
        self._set("steps", steps, f"about {passes:.0f} passes over {counted(images, 'training image')}")
        self._set("batch_size", batch, "")
        if self._is_toy:
            self._set(
                "learning_rate", PRESETS["toy"]["learning_rate"] * batch / usual, "that of the toy preset, by batch"
            )
        if self._is_gentle:
            self._follow_recipe(steps)
        else:
            self._set("warmup_steps", round(0.075 * steps), "the share that VOC has")
            self._set("seg_start_step", steps // 10, "the share that VOC has")
        self._set("checkpoint_every", max(1, steps // (4 if self._is_gentle else 10)), "")
        self._set("log_every", max(1, min(20, steps // 40)), "")
        self.said.append(
            f"training   {counted(steps, 'step')} of {counted(batch, 'image')} (about {passes:.0f} passes), warm-up "
            f"{self._value('warmup_steps')}, segmentation from step {self._value('seg_start_step')}"
        )

    def _follow_recipe(self, steps: int) -> None:
        """A linear probe, then the last blocks, slowly: what holds of few photographs and a pretrained ViT."""
        from toco_lab.training.processes import resolve_device
        from toco_lab.training.timing import WORTH_IT, bf16_gain

        reason = f"fewer than {FEW:,} training images: as in the preset voc_clip"
        self._set("probe_heads", True, reason)
        for name in ("cam_scales", "learning_rate", "head_lr_factor", "frozen_blocks", "w_ptc", "w_seg"):
            value = RECIPE[name]
            self._set(name, list(value) if isinstance(value, tuple) else value, "")
        gain = bf16_gain(resolve_device("auto"))
        if gain > WORTH_IT:
            self._set("precision", "bf16", f"an encoder computes {gain:.1f} times as fast as in fp32 on this machine")
        for name in ("warmup_steps", "contrast_start_step", "seg_start_step"):
            self._set(name, steps * RECIPE[name] // RECIPE["steps"], "")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
