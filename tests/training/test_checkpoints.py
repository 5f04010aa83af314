"""Weights in and out: damaged files, foreign files, the authors' names, pretrained backbones offline."""

import math
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toco_lab.backbones.weights import CheckpointError, read_weights
from toco_lab.config import Config
from toco_lab.method.model import ToCo
from toco_lab.training.checkpoints import initial_model, load_checkpoint, save_checkpoint
from toco_lab.training.learner import Learner
from toco_lab.training.released import export_released, import_released, run_of_released

CFG = Config.preset("smoke")


def test_training_checkpoint_round_trip(tmp_path):
    model = ToCo(CFG)
    save_checkpoint(tmp_path / "step_00000003.pt", Learner.of(model, CFG).state(), 3, CFG)
    state = load_checkpoint(tmp_path / "step_00000003.pt")
    assert state["step"] == 3 and Config.from_json(state["config"]) == CFG
    for name, value in model.state_dict().items():
        assert torch.equal(state["model"][name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003.pt"]


def test_truncated_checkpoint_is_named_and_the_one_before_offered(tmp_path):
    model = ToCo(CFG)
    for step in (2, 4):
        save_checkpoint(tmp_path / f"step_0000000{step}.pt", Learner.of(model, CFG).state(), step, CFG)
    damaged = tmp_path / "step_00000004.pt"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(damaged)
    assert "step_00000004.pt" in str(error.value) and "step_00000002.pt" in str(error.value)
    assert (tmp_path / "step_00000002.pt").is_file()


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        read_weights(tmp_path / "evil.pt")
    torch.save({"model": Evil()}, tmp_path / "evil2.pt")
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="could run code"):
        read_weights(tmp_path / "evil2.pt")
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_wrong_kind_of_file(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file"):
        read_weights(tmp_path / "absent.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a training checkpoint: it has no config, model, optimizer, step"):
        load_checkpoint(tmp_path / "other.pt")
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(CheckpointError, match=r"short\.safetensors is truncated"):
        read_weights(tmp_path / "short.safetensors")


def test_released_import_lists_missing_and_unexpected_names():
    source, target = ToCo(CFG), ToCo(CFG)
    state = {f"module.{name}": value for name, value in export_released(source).items()}
    state["module.encoder.head.weight"] = torch.ones(3, 24)
    del state["module.decoder.conv6.weight"]
    report = import_released(target, state)
    assert report.missing == ["decoder.conv6.weight"]
    assert report.unexpected == ["encoder.head.weight"]
    assert "decoder.conv6.weight" in str(report)
    assert torch.equal(target.teacher_head.directions, source.teacher_head.directions)
    exported = export_released(target, report.unused)
    assert set(exported) == {name.removeprefix("module.") for name in state} | {"decoder.conv6.weight"}


def test_a_released_file_that_lacks_weights_makes_no_run(tmp_path):
    state = export_released(ToCo(CFG))
    del state["encoder.cls_token"], state["encoder.pos_embed"]
    torch.save(state, tmp_path / "toco.pth")
    words = r"toco\.pth lacks 2 parameters of the model, which would stay random: encoder.cls_token, encoder.pos_embed"
    with pytest.raises(CheckpointError, match=words):
        run_of_released(CFG, tmp_path / "toco.pth", tmp_path / "runs")
    with pytest.raises(ValueError, match=r"name '\.\.' names no folder below the root"):
        run_of_released(CFG, tmp_path / "toco.pth", tmp_path / "runs", name="..")
    assert [path.name for path in tmp_path.iterdir()] == ["toco.pth"]


def test_released_import_refuses_other_sizes_and_other_models():
    with pytest.raises(CheckpointError, match="other sizes"):
        import_released(ToCo(CFG), export_released(ToCo(CFG.replace(decoder_width=8))))
    with pytest.raises(CheckpointError, match="no parameter of the checkpoint is known"):
        import_released(ToCo(CFG), {"layer1.weight": torch.zeros(1)})
    state = export_released(ToCo(CFG))
    state["proj_head.last_layer.weight_g"] *= 2
    with pytest.raises(CheckpointError, match="not all ones"):
        import_released(ToCo(CFG), state)


def test_backbone_weights_from_a_local_file_resample_the_position_grid(tmp_path):
    source = ToCo(CFG.replace(image_size=64, crop_size=64, view2_size=64)).encoder
    state = source.state_dict() | {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    torch.save({"model": state}, tmp_path / "vit.pth")
    for name in ("vit.safetensors", "vit.pth"):
        model = initial_model(CFG.replace(pretrained=True, weights=str(tmp_path / name)))
        assert torch.equal(model.encoder.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
        assert model.encoder.pos_embed.shape == (1, 1 + 12 * 12, 24)
    with pytest.raises(CheckpointError, match=r"vit\.pth does not fit this backbone"):
        initial_model(CFG.replace(pretrained=True, weights=str(tmp_path / "vit.pth"), depth=5))


def test_pretrained_without_a_network_names_the_model_and_the_remedy(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("timm.create_model", offline(CFG))
    with pytest.raises(CheckpointError) as error:
        initial_model(CFG.replace(pretrained=True))
    assert "vit_tiny_patch16_224" in str(error.value) and "weights=" in str(error.value)


def offline(cfg):
    """timm.create_model as it is without a network: random weights work, pretrained ones raise."""
    import timm

    real = timm.create_model

    def create(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no network")
        return real(name, **kwargs)

    return create


# --- what is read without an error and still wrong --------------------------------------------------------------------


@pytest.fixture
def two_checkpoints(tmp_path):
    """A learner after two steps' worth of moments, and its checkpoints of steps 2 and 4."""
    learner = Learner.of(ToCo(CFG).train(), CFG)
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    learner.optimizer.step()
    for step in (2, 4):
        save_checkpoint(tmp_path / f"step_0000000{step}.pt", learner.state(), step, CFG)
    return learner, tmp_path / "step_00000004.pt"


def refused(path, learner, match, cfg=CFG):
    """`load_checkpoint` names the file, what is wrong with it, and the older one."""
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(path, cfg, model=learner.model, optimizer=learner.optimizer)
    assert path.name in str(error.value) and "continue from " in str(error.value)
    assert "step_00000002.pt" in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_numbers_that_are_not_finite_are_named(two_checkpoints, part, value):
    learner, path = two_checkpoints
    state = torch.load(path)
    if part == "model":
        state["model"]["classifier.weight"].view(-1)[3] = value
    else:
        state["optimizer"]["state"][5]["exp_avg_sq"].view(-1)[0] = value
    torch.save(state, path)
    named = "model.classifier.weight" if part == "model" else "optimizer.state.5.exp_avg_sq"
    refused(path, learner, rf"NaN or infinite, in {named}")


@pytest.mark.parametrize("changes", [{"seed": 7}, {"w_ptc": 0.5}, {"steps": 6}])
def test_weights_of_another_config_or_seed_are_refused(two_checkpoints, changes):
    learner, path = two_checkpoints
    name = next(iter(changes))
    refused(
        path, learner, rf"another config: {name} \(.* in the file, {changes[name]} in the run\)", CFG.replace(**changes)
    )
    load_checkpoint(path, CFG.replace(device="cpu", num_workers=1), model=learner.model)  # they change no number


def test_a_step_that_is_not_the_files_is_refused(two_checkpoints):
    learner, path = two_checkpoints
    path.rename(later := path.with_name("step_00000003.pt"))
    refused(later, learner, "holds step 4, not the one of its name")


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_moments_of_another_shape_are_refused(two_checkpoints, name):
    """Loaded into the fused AdamW they end the process with a segmentation fault."""
    learner, path = two_checkpoints
    state = torch.load(path)
    state["optimizer"]["state"][2][name] = torch.zeros(3)
    torch.save(state, path)
    refused(path, learner, rf"moment of another shape: {name} of parameter 2 is 3 float32, expected ")
    state["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(state, path)
    refused(path, learner, "parameters in groups, this run's has")
    state["optimizer"] = {"state": 3}
    torch.save(state, path)
    refused(path, learner, "no state of this optimiser")


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda moment: moment.pop("exp_avg"),
            "holds step, exp_avg_sq of parameter 2, expected are exp_avg",
        ),
        (lambda moment: moment.update(other=torch.zeros(1)), "exp_avg_sq, other of parameter 2, expected are exp_avg"),
        (
            lambda moment: moment.update(step=torch.tensor(-1.0)),
            "counts -1 updates of parameter 2, expected are 1",
        ),
        (lambda moment: moment.update(step=torch.tensor(5.0)), "counts 5 updates of parameter 2, expected are 1 to 4"),
        (lambda moment: moment.update(exp_avg=moment["exp_avg"].to_sparse()), "optimizer.state.2.exp_avg is sparse"),
    ],
)
def test_moments_that_adamw_does_not_have_are_refused(two_checkpoints, change, match):
    learner, path = two_checkpoints
    state = torch.load(path)
    change(state["optimizer"]["state"][2])
    torch.save(state, path)
    refused(path, learner, match)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"scale": 0.0}, "its scale is 0.0"),
        ({"scale": math.nan}, "its scale is nan"),
        ({"scale": "1"}, "its scale is '1'"),
        ({"growth_interval": 0}, "its growth_interval is 0"),
        ({"backoff_factor": 2.0}, "its backoff_factor is 2.0"),
        ({"_growth_tracker": -1}, "its _growth_tracker is -1"),
        ({"other": 1}, "has no scaler, which precision fp16 needs: it holds scale, .*other"),
        (None, "has no scaler, which precision fp16 needs: it holds no scaler"),
    ],
)
def test_a_scaler_that_no_training_writes_is_refused(tmp_path, changed, match):
    cfg, path = CFG.replace(precision="fp16"), tmp_path / "step_00000002.pt"
    learner = Learner.of(ToCo(cfg), cfg)
    save_checkpoint(path, learner.state(), 2, cfg)
    sound = load_checkpoint(path, cfg)
    torch.save(sound | {"scaler": changed and sound["scaler"] | changed}, path)
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(path, cfg)
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("betas", (0.5, 0.9)), ("weight_decay", math.nan), ("lr_factor", None), ("fused", "yes")]
)
def test_settings_of_the_optimiser_must_be_those_of_the_config(two_checkpoints, name, value):
    """They would be taken over from the file: another decay trains on without a word."""
    learner, path = two_checkpoints
    state = torch.load(path)
    state["optimizer"]["param_groups"][2][name] = value
    torch.save(state, path)
    refused(path, learner, f"another setting: {name} of group 'heads' is .*, expected ")
    state["optimizer"]["param_groups"][2] = learner.optimizer.state_dict()["param_groups"][2] | {"lr": 0.5}
    torch.save(state, path)
    load_checkpoint(path, CFG, model=learner.model, optimizer=learner.optimizer)  # the rate is set before each step


ODD = {
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "without values": lambda value: value.to("meta"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_weights_are_named(tmp_path, kind):
    """Complex ones lost their imaginary part without a word, the others ended in an error of torch."""
    model, path = ToCo(CFG), tmp_path / "odd.pth"
    torch.save(model.encoder.state_dict() | {"norm.bias": ODD[kind](model.encoder.norm.bias.detach())}, path)
    with pytest.raises(CheckpointError, match=rf"odd\.pth holds tensors that are no weights: norm\.bias is {kind}"):
        initial_model(CFG.replace(pretrained=True, weights=str(path)))
    state = export_released(model)
    torch.save(state | {"encoder.norm.bias": ODD[kind](state["encoder.norm.bias"])}, path)
    with pytest.raises(CheckpointError, match=rf"odd\.pth holds tensors that are .*: encoder\.norm\.bias is {kind}"):
        import_released(ToCo(CFG), path)


def test_whole_numbers_in_place_of_fractions_are_named(tmp_path):
    model, path = ToCo(CFG), tmp_path / "cut.pth"
    torch.save(model.encoder.state_dict() | {"norm.bias": torch.zeros(24, dtype=torch.long)}, path)
    with pytest.raises(CheckpointError, match=r"cut\.pth holds whole numbers .* fractions, in norm\.bias \(int64\)"):
        initial_model(CFG.replace(pretrained=True, weights=str(path)))
    torch.save(export_released(model) | {"encoder.norm.bias": torch.zeros(24, dtype=torch.long)}, path)
    with pytest.raises(CheckpointError, match=r"cut\.pth holds whole numbers .* fractions, in encoder\.norm\.bias"):
        import_released(ToCo(CFG), path)


def test_an_error_about_a_file_of_the_authors_names_it(tmp_path):
    path = tmp_path / "released.pth"
    for change, match in (
        (
            {"encoder.norm.bias": torch.zeros(3)},
            r"released\.pth is of a model of other sizes.*bias \(3, expected 24\)",
        ),
        ({"proj_head.last_layer.weight_g": torch.zeros(32, 1)}, r"weight_g of .*released\.pth is not all ones"),
        ({"encoder.norm.bias": "text"}, r"released\.pth is no dict of tensors by name: encoder\.norm\.bias"),
    ):
        torch.save(export_released(ToCo(CFG)) | change, path)
        with pytest.raises(CheckpointError, match=match):
            import_released(ToCo(CFG), path)
    torch.save({"layer1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"no parameter of .*released\.pth is known; it begins with layer1"):
        import_released(ToCo(CFG), path)


def test_weights_of_another_shape_or_name_are_counted(two_checkpoints):
    learner, path = two_checkpoints
    state = torch.load(path)
    weight = state["model"].pop("aux_classifier.weight")
    state["model"]["aux.weight"] = weight.half()
    state["model"]["classifier.weight"] = torch.zeros(1, 2)
    torch.save(state, path)
    refused(
        path,
        learner,
        r"missing: aux_classifier.weight; unexpected: aux.weight; of another shape or type: "
        r"classifier.weight \(1 x 2 float32, expected",
    )


def test_a_part_of_another_type_is_named(two_checkpoints):
    learner, path = two_checkpoints
    for part, value in (("step", "4"), ("model", [1]), ("config", {})):
        state = torch.load(path) | {part: value}
        torch.save(state, path)
        refused(path, learner, rf"its {part} is of type {type(value).__name__}")
        save_checkpoint(path, learner.state(), 4, CFG)
    torch.save([1, 2], path)
    refused(path, learner, "no dict of tensors by name but an object of type list")


def test_no_flipped_bit_is_read_as_other_numbers(two_checkpoints):
    """Wherever a bit flips: the file is refused by name, or (in padding) reads as it was."""
    learner, path = two_checkpoints
    sound, good = load_checkpoint(path), path.read_bytes()
    generator, found = torch.Generator().manual_seed(0), 0
    places = [*torch.randint(len(good), (150,), generator=generator).tolist(), *range(0, 200, 7)]
    places += [*range(len(good) - 4000, len(good), 53)]
    for number, place in enumerate(places):
        bad = bytearray(good)
        bad[place] ^= 1 << number % 8
        path.write_bytes(bad)
        try:
            state = load_checkpoint(path, CFG, model=learner.model, optimizer=learner.optimizer)
        except CheckpointError as error:
            assert str(path) in str(error) and "step_00000002.pt" in str(error)
            found += 1
        else:
            assert all(torch.equal(state["model"][name], value) for name, value in sound["model"].items()), place
            assert state["step"] == 4
    assert found > 100


@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_other_bytes_are_refused_or_read_as_the_same_numbers(two_checkpoints, data):
    """Bytes replaced, put in or taken out, anywhere in the file."""
    learner, path = two_checkpoints
    good = path.with_name("step_00000002.pt").read_bytes()
    place = data.draw(st.one_of(st.integers(0, len(good) - 1), st.integers(len(good) - 300, len(good) - 1)))
    path = path.with_name("step_00000002_spoilt.pt")
    path.write_bytes(good[:place] + data.draw(st.binary(max_size=4)) + good[place + data.draw(st.integers(0, 4)) :])
    try:
        state = load_checkpoint(path, CFG, model=learner.model, optimizer=learner.optimizer)
    except CheckpointError as error:
        assert path.name in str(error) and "Delete" in str(error)
    else:
        assert all(torch.equal(state["model"][name], value) for name, value in learner.model.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "teacher.backbone."])
def test_prefixes_of_training_code_are_taken_off(tmp_path, prefix):
    source = ToCo(CFG).encoder
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()} | {"student.x": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "vit.pth")
    model = initial_model(CFG.replace(pretrained=True, weights=str(tmp_path / "vit.pth")))
    assert torch.equal(model.encoder.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


def test_pretrained_weights_that_do_not_fit_are_counted_and_bad_numbers_named(tmp_path):
    path, cfg = tmp_path / "vit.pth", CFG.replace(pretrained=True, weights=str(tmp_path / "vit.pth"))
    state = ToCo(CFG).encoder.state_dict()
    torch.save({name: value for name, value in state.items() if "attn" not in name}, path)
    with pytest.raises(
        CheckpointError, match=r"vit\.pth does not .* missing \(16\): blocks.0.* and 13 more; unexpected \(0\)"
    ):
        initial_model(cfg)
    torch.save(state | {"norm.weight": torch.full((24,), math.nan)}, path)
    with pytest.raises(CheckpointError, match=r"vit\.pth holds numbers that are NaN or infinite, in norm.weight"):
        initial_model(cfg)
    torch.save(state | {"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"vit\.pth is no dict of tensors by name: epoch"):
        initial_model(cfg)
    for wrong in (state["norm.weight"], [state], "words"):
        torch.save(wrong, path)
        with pytest.raises(CheckpointError, match=r"vit\.pth holds no dict of tensors by name but an object of type"):
            initial_model(cfg)
    torch.save({}, path)
    with pytest.raises(CheckpointError, match=r"vit\.pth holds no weights"):
        initial_model(cfg)


def test_a_flipped_bit_in_pretrained_weights_is_said(tmp_path):
    torch.save(ToCo(CFG).encoder.state_dict(), path := tmp_path / "vit.pth")
    bad = bytearray(path.read_bytes())
    bad[len(bad) // 2] ^= 4
    path.write_bytes(bad)
    with pytest.raises(CheckpointError, match=r"vit\.pth is damaged.*; copy or download it again"):
        read_weights(path)


def test_a_config_with_fewer_blocks_than_the_weights_begins_with_their_first_ones():
    whole, cut = (initial_model(Config.preset("toy").replace(depth=depth)).encoder.state_dict() for depth in (8, 3))
    behind = tuple(f"blocks.{number}." for number in range(3, 8))
    assert set(whole) - set(cut) == {name for name in whole if name.startswith(behind)}
    assert all(torch.equal(value, whole[name]) for name, value in cut.items())
    with pytest.raises(CheckpointError, match=r"missing .*blocks\.8\."):
        initial_model(Config.preset("toy").replace(depth=9))
