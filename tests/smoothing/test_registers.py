"""Test-time registers of a ViT into which one register neuron was built by hand, and of a real one without any."""

import numpy as np
import pytest
import timm
import torch
from helpers.folders import SAMPLES
from PIL import Image

from toco_lab.backbones.activations import capture
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.explorers.token_explorer import TokenExplorer
from toco_lab.method.model import ToCo
from toco_lab.smoothing.artifacts import length_modes
from toco_lab.smoothing.compare import measure_models
from toco_lab.smoothing.named_models import open_model
from toco_lab.smoothing.registers import RegisterNeurons, find_register_neurons, with_registers
from toco_lab.tokens.snapshots import maps_of_model

DINOV2 = SAMPLES.parent / "weights" / "dinov2_vits14_fp16.safetensors"
BLOCK, UNIT = 2, 17
NONE = RegisterNeurons((), (), 0, 0, 0)


def vit(**changes):
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 0, "depth": 5}
    options = sizes | {"dynamic_img_size": True} | changes
    return timm.create_model(changes.pop("name", "vit_tiny_patch16_224"), **options).eval()


def images(count=6):
    """Noise with three blank patches each: those become artifacts."""
    drawn = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        image = torch.randn(3, 64, 64, generator=drawn)
        for place in torch.randperm(64, generator=drawn)[:3].tolist():
            row, column = place // 8 * 8, place % 8 * 8
            image[:, row : row + 8, column : column + 8] = 1.0
        found.append(image)
    return found


@pytest.fixture(scope="module")
def artful():
    """A ViT whose unit `UNIT` of block `BLOCK` fires on blank patches and writes one direction, a hundredfold."""
    model = vit()
    mlp, entering = model.blocks[BLOCK].mlp, []
    with torch.no_grad():
        model.pos_embed.mul_(0.1)
        hook = mlp.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
        blank = torch.stack(images())
        model.forward_features(blank)
        hook.remove()
        long = (blank == 1).all(1)[:, ::8, ::8].flatten(1)
        own = entering[0][:, 1:]
        direction = own[long].mean(0) - own[~long].mean(0)
        direction /= direction.norm()
        middle = (own[long] @ direction).min() + (own[~long] @ direction).max()
        mlp.fc1.weight[UNIT], mlp.fc1.bias[UNIT] = 8 * direction, -4 * middle
        mlp.fc2.weight[:, UNIT] = 20 * torch.randn(32)
    return model


def artifact_share(model, image, after=BLOCK):
    seen = capture(model, image[None])
    return length_modes(seen.patches(seen.after_block[after])[0].norm(dim=1).numpy()).share


def test_the_neuron_is_found_and_the_register_takes_the_artifacts(artful):
    pictures = images()
    assert [artifact_share(artful, image) for image in pictures] == [3 / 64] * 6
    found = find_register_neurons(artful, pictures)
    assert found.neurons[0] == (BLOCK, UNIT)
    assert found.activations[0] > 3 * found.activations[1]
    assert (found.images, found.artifacts, found.last_block) == (6, 18, BLOCK + 1)
    one = find_register_neurons(artful, pictures, most=1)
    assert one.neurons == ((BLOCK, UNIT),)
    better = with_registers(artful, one)
    for image in pictures:
        assert artifact_share(better, image) == 0
        before, after = capture(artful, image[None]), capture(better, image[None])
        assert (before.num_prefix, after.num_prefix) == (1, 2)
        longest = before.patches(before.after_block[BLOCK]).norm(dim=2).max()
        register = after.after_block[BLOCK][:, 1].norm()
        assert register > 0.5 * longest
        assert after.patches(after.after_block[BLOCK]).norm(dim=2).max() < 0.3 * longest
        # beside the artifacts, the map of similarities is what it was
        short = before.patches(before.after_block[BLOCK])[0].norm(dim=1) < 0.5 * longest
        pairs = [
            torch.nn.functional.cosine_similarity(*(one.patches(one.after_block[BLOCK])[0][short] for one in both))
            for both in [(before, after)]
        ]
        assert pairs[0].min() > 0.9


def test_the_score_is_the_mean_activation_on_artifacts_and_then_over_images(artful):
    pictures, hidden = images(3), []
    hook = artful.blocks[BLOCK].mlp.act.register_forward_hook(lambda _, __, output: hidden.append(output[0, 1:, UNIT]))
    expected = []
    for image in pictures:
        with torch.no_grad():
            tokens = capture(artful, image[None])
        cut = length_modes(tokens.patches(tokens.after_block[-2])[0].norm(dim=1).numpy()).cut
        expected.append(hidden[-1][tokens.patches(tokens.after_block[-2])[0].norm(dim=1) > cut].abs().mean())
    hook.remove()
    assert find_register_neurons(artful, pictures).activations[0] == pytest.approx(float(np.mean(expected)), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_every_token_is_what_the_equations_say(artful, count):
    """The pass by hand: zeros behind the class token, and in one MLP the unit moved."""
    image = images(1)[0][None]
    neurons = RegisterNeurons(((BLOCK, UNIT), (BLOCK, 5)), (1.0, 1.0), 1, 1, 3)
    seen = capture(with_registers(artful, neurons, count=count), image)
    with torch.no_grad():
        patches = artful.patch_embed(image).flatten(1, 2)
        positions = artful.pos_embed
        first, rest = artful.cls_token + positions[:, :1], patches + positions[:, 1:]
        tokens = torch.cat([first, torch.zeros(1, count, 32), rest], dim=1)
        for number, block in enumerate(artful.blocks):
            tokens = tokens + block.attn(block.norm1(tokens))
            hidden = block.mlp.act(block.mlp.fc1(block.norm2(tokens)))
            if number == BLOCK:
                for unit in (5, UNIT):
                    largest = hidden[0, :, unit].max()
                    hidden[0, 1 + count :, unit] = 0
                    hidden[0, 1 : 1 + count, unit] = largest
            tokens = tokens + block.mlp.fc2(hidden)
            torch.testing.assert_close(seen.after_block[number], tokens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(seen.final, artful.norm(tokens), rtol=1e-4, atol=1e-4)


def test_the_model_itself_and_other_sizes(artful):
    state = {name: value.clone() for name, value in artful.state_dict().items()}
    better = with_registers(artful, find_register_neurons(artful, images(2)))
    assert all(torch.equal(value, state[name]) for name, value in artful.state_dict().items())
    assert artful.num_prefix_tokens == 1
    assert not any(part._forward_pre_hooks for part in artful.modules())
    assert capture(better, torch.randn(1, 3, 48, 80)).grid == (6, 10)


def test_a_toco_keeps_the_positions_that_training_resamples():
    cfg = Config.preset("smoke")
    torch.manual_seed(0)
    model = ToCo(cfg).eval()
    better = with_registers(model, NONE)
    image = torch.randn(1, 3, 64, 48)
    here, there = capture(model, image), capture(better, image)
    torch.testing.assert_close(here.embedding[:, 1:], there.embedding[:, 2:])
    assert torch.equal(there.embedding[:, 1], torch.zeros(1, 24))
    assert not torch.equal(here.final[:, 1:], there.final[:, 2:])


def test_without_artifacts_none_are_found():
    assert find_register_neurons(vit(), [torch.randn(3, 64, 64) for _ in range(2)]) == NONE


def test_what_cannot_have_registers(artful):
    drawn = [torch.randn(3, 64, 64)]
    with pytest.raises(ValueError, match="no plain ViT"):
        find_register_neurons(timm.create_model("resnet18", num_classes=0), drawn)
    trained = vit()
    trained.reg_token = torch.nn.Parameter(torch.zeros(1, 4, 32))
    with pytest.raises(ValueError, match="was trained with registers"):
        with_registers(trained, NONE)
    distilled = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=0, depth=2, embed_dim=32, num_heads=2, dynamic_img_size=True
    )
    with pytest.raises(ValueError, match="in its own way"):
        with_registers(distilled, NONE)
    with pytest.raises(ValueError, match="unit 999 of block 0"):
        with_registers(artful, RegisterNeurons(((0, 999),), (1.0,), 1, 1, 1))
    with pytest.raises(ValueError, match="count must be"):
        with_registers(artful, NONE, count=0)
    with pytest.raises(ValueError, match=r"last_block in 1\.\.5"):
        find_register_neurons(artful, drawn, last_block=6)


def test_the_explorer_has_both_models(artful):
    named = [f"image {index}" for index in range(2)]
    pictures = images(2)
    maps = maps_of_model(artful, pictures, name="ViT", image_names=named, mean=(0.5,) * 3, std=(0.5,) * 3)
    better = with_registers(artful, find_register_neurons(artful, pictures))
    maps += maps_of_model(better, pictures, name="ViT + 1 register", image_names=named, mean=(0.5,) * 3, std=(0.5,) * 3)
    explorer = TokenExplorer(maps, left="ViT", right="ViT + 1 register", show="length")
    shares = [length_modes(one.tokens.token_lengths(0, BLOCK)).share for one in maps if one.image_name == named[0]]
    assert shares == [pytest.approx(3 / 64), 0]
    assert [shown["title"].partition(",")[0] for shown in explorer.similarity_maps()] == ["ViT", "ViT + 1 register"]


def test_a_comparison_shows_both_and_says_what_was_found(artful):
    # pixels that the model's own normalisation (0.5, 0.5) brings back to what `images` drew, within [0, 255]
    pictures = [
        (image.clamp(-3, 3) / 6 * 255 + 127.5).round().byte().permute(1, 2, 0).numpy().copy() for image in images(3)
    ]
    found = measure_models({"ViT": artful, "plain": vit()}, pictures, image_size=0, registers=2, progress=False)
    assert list(found.protocol["models"]) == ["ViT", "ViT + 2 registers", "plain"]
    assert found.protocol["registers"]["plain"] == "none: no artifacts in 3 images"
    assert found.protocol["registers"]["ViT"].startswith("2, for 9 artifacts in 3 images; neurons (block/unit) 3/17, ")


@pytest.mark.skipif(not DINOV2.exists(), reason=f"{DINOV2} is absent")
def test_a_real_small_vit_has_no_artifacts(tmp_path, capsys):
    """As Darcet et al. 2024 found: they appear in large models."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for index, path in enumerate(sorted(SAMPLES.rglob("*.jpg"))[:2]):
        Image.open(path).convert("RGB").save(photographs / f"{index}.png")
    opened = open_model(f"vit_small_patch14_dinov2={DINOV2}")
    drawn = [torch.randn(3, 56, 56)]
    assert find_register_neurons(opened.model, drawn).images == 0
    arguments = ["smoothing", f"vit_small_patch14_dinov2={DINOV2}", "--images", str(photographs)]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--size", "112", "--registers", "1"]) in (0, None)
    said = "registers none: no artifacts in 2 images."
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "out" / "report.html").read_text()
