"""The released I-JEPA configurations, written by hand from what is known of them, are read as the papers' recipes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jepakit import cli
from jepakit.config.config import known_keys
from jepakit.config.recipes import recipe, settings
from jepakit.config.released_yaml import OTHERWISE, SAME, UNMAPPED, has_released_groups, released_yaml
from jepakit.core.errors import UserError
from jepakit.model.masking.masks import MultiBlock
from jepakit.training.train import pretrain

# name: model, pixels, patch, predictor's depth, images a GPU, epochs, warm-up; GPUs; what differs from the recipe
FOUR: dict[str, tuple[tuple[Any, ...], str, dict[str, float]]] = {
    "in1k_vith14_ep300": (("vit_huge", 224, 14, 12, 128, 300, 40), "ijepa_vith14", {}),
    "in1k_vith16-448_ep300": (("vit_huge", 448, 16, 12, 16, 300, 40), "ijepa_vith16_448", {}),
    "in22k_vith14_ep66": (("vit_huge", 224, 14, 12, 32, 66, 3), "ijepa_vith14", {"epochs": 66.0, "warmup_epochs": 3.0}),
    "in22k_vitg16_ep44": (("vit_giant", 224, 16, 16, 16, 44, 3), "ijepa_vitg16", {}),
}
BRIEF = (
    "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1 images.size=32 "
    "masking.min_keep=2 optim.batch_size=8 optim.steps=1 run.threads=1 run.probe_images=0 run.precision=fp32"
)


def released(model: str, pixels: int, patch: int, depth: int, batch: int, epochs: int, warmup: int) -> dict[str, Any]:
    """A file of the released code with such values; the others are the same in all of its files."""
    return {
        "data": {
            "batch_size": batch,
            "color_jitter_strength": 0.0,
            "crop_scale": [0.3, 1.0],
            "crop_size": pixels,
            "image_folder": "set/",
            "num_workers": 10,
            "pin_mem": True,
            "root_path": "/nowhere/",
            "use_color_distortion": False,
            "use_gaussian_blur": False,
            "use_horizontal_flip": False,
        },
        "logging": {"folder": "/nowhere/logs", "write_tag": "jepa"},
        "mask": {
            "allow_overlap": False,
            "aspect_ratio": [0.75, 1.5],
            "enc_mask_scale": [0.85, 1.0],
            "min_keep": 10,
            "num_enc_masks": 1,
            "num_pred_masks": 4,
            "patch_size": patch,
            "pred_mask_scale": [0.15, 0.2],
        },
        "meta": {
            "copy_data": False,
            "load_checkpoint": False,
            "model_name": model,
            "pred_depth": depth,
            "pred_emb_dim": 384,
            "read_checkpoint": None,
            "use_bfloat16": True,
        },
        "optimization": {
            "ema": [0.996, 1.0],
            "epochs": epochs,
            "final_lr": 1.0e-06,
            "final_weight_decay": 0.4,
            "ipe_scale": 1.0,
            "lr": 0.001,
            "start_lr": 0.0002,
            "warmup": warmup,
            "weight_decay": 0.04,
        },
    }


def vith14(**changes: Any) -> dict[str, Any]:
    """The first of the four with other values, {'group.key': value}; None leaves a key out."""
    file = released(*FOUR["in1k_vith14_ep300"][0])
    for key, value in changes.items():
        group, name = key.split("__")
        file[group][name] = value
        if value is None:
            del file[group][name]
    return file


def value_at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


@pytest.mark.parametrize("name", FOUR)
def test_the_four_released_files_are_the_recipes(name: str) -> None:
    """Each value of the recipe that the file has a key for stands in the file's own layer, and all others are the recipe's."""
    values, of, differing = FOUR[name]
    file = released_yaml(released(*values), name, own_data=True)
    config, expected = settings(file.layer["recipe"], "ijepa", file.layer), settings(of, None)
    assert config.optim.batch_size == 2048 and config.run.loader_threads == 10
    as_recipe = expected.model_copy(
        update={
            "optim": expected.optim.model_copy(update=differing),
            "run": expected.run.model_copy(update={"loader_threads": 10}),
        }
    )
    assert config == as_recipe
    for key, (value, _) in recipe(of).values.items():
        no_key = {"images.mean", "images.std", "masking.kind", "masking.compat", "loss", "optim.weight_decay_schedule"}
        if key not in no_key:
            given = value_at(file.layer, key)
            wanted = differing.get(key.removeprefix("optim."), value)
            assert (tuple(given) if isinstance(given, list) else given) == wanted, key
    assert isinstance(config.masking, MultiBlock) and config.masking.compat == "released"
    assert config.regularizer is None and config.conditioning is None
    assert not file.warnings and "not in the file" not in "".join(file.notes)


def test_every_key_is_read_or_named_and_all_of_ours_are_settings() -> None:
    file = vith14()
    keys = {f"{group}.{key}" for group, values in file.items() for key in values}
    assert keys == SAME.keys() | OTHERWISE.keys() | UNMAPPED.keys()
    assert {ours for value in (*SAME.values(), *OTHERWISE.values()) for ours in value.split(", ")} <= {*known_keys()}
    notes = released_yaml(file, "f", own_data=False).notes
    for key in UNMAPPED:
        assert sum(note.startswith(f"{key} is not used: ") for note in notes) == 1, key


@pytest.mark.parametrize(
    ("theirs", "value", "ours"),
    [
        ("data__crop_size", 112, "images.size"),
        ("data__crop_scale", [0.5, 0.9], "images.crop_scale"),
        ("data__num_workers", 3, "run.loader_threads"),
        ("mask__allow_overlap", True, "masking.allow_overlap"),
        ("mask__aspect_ratio", [0.5, 2.0], "masking.target_aspect"),
        ("mask__enc_mask_scale", [0.6, 0.8], "masking.context_scale"),
        ("mask__min_keep", 4, "masking.min_keep"),
        ("mask__num_enc_masks", 2, "masking.contexts"),
        ("mask__num_pred_masks", 3, "masking.targets"),
        ("mask__patch_size", 16, "encoder.patch_size"),
        ("mask__pred_mask_scale", [0.1, 0.3], "masking.target_scale"),
        ("meta__pred_depth", 6, "predictor.depth"),
        ("meta__pred_emb_dim", 192, "predictor.width"),
        ("optimization__epochs", 7, "optim.epochs"),
        ("optimization__final_lr", 1e-5, "optim.final_lr"),
        ("optimization__final_weight_decay", 0.1, "optim.final_weight_decay"),
        ("optimization__ipe_scale", 1.25, "optim.schedule_scale"),
        ("optimization__lr", 2e-3, "optim.lr"),
        ("optimization__start_lr", 1e-4, "optim.start_lr"),
        ("optimization__warmup", 5, "optim.warmup_epochs"),
        ("optimization__weight_decay", 0.05, "optim.weight_decay"),
    ],
)
def test_another_value_moves_the_setting_of_that_meaning_alone(theirs: str, value: Any, ours: str) -> None:
    before, after = (
        settings(f.layer["recipe"], None, f.layer)
        for f in (released_yaml(vith14(**given), "f", own_data=True) for given in ({}, {theirs: value}))
    )
    moved = value_at(after, ours)
    assert (list(moved) if isinstance(moved, tuple) else moved) == value
    a, b = before.model_dump(), after.model_dump()
    a["optim"].pop("batch_size"), b["optim"].pop("batch_size")  # of another size no run was published
    differ = {f"{g}.{k}" for g in a if isinstance(a[g], dict) for k in a[g] if a[g][k] != b[g][k]}
    assert differ == {ours} and {g for g in a if not isinstance(a[g], dict) and a[g] != b[g]} == set()


def test_values_that_are_said_otherwise() -> None:
    layer = released_yaml(vith14(meta__use_bfloat16=False, optimization__ema=[0.9, 0.95]), "f", own_data=False).layer
    assert layer["run"]["precision"] == "fp32" and layer["data"] == "/nowhere/set/"
    for on, ours in ((True, "mirror"), (False, None)):
        file = released_yaml(vith14(data__use_horizontal_flip=on), "f", own_data=True)
        assert settings(file.layer["recipe"], None, file.layer).images.symmetry == ours
    assert (layer["optim"]["ema_momentum"], layer["optim"]["final_ema_momentum"]) == (0.9, 0.95)
    sizes = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768, "vit_large": 1024, "vit_huge": 1280, "vit_giant": 1408}
    for name, width in sizes.items():
        file = released_yaml(vith14(meta__model_name=name), "f", own_data=True)
        assert settings(file.layer["recipe"], None, file.layer).encoder.width == width


def test_the_batch_is_of_all_gpus_as_published_or_a_warning() -> None:
    known = released_yaml(vith14(), "f", own_data=True)
    told = next(note for note in known.notes if "data.batch_size" in note)
    assert "optim.batch_size=2048" in told and "128 for a GPU" in told and "had 16" in told and not known.warnings
    other = released_yaml(vith14(data__batch_size=64), "f", own_data=True)
    assert other.layer["optim"]["batch_size"] == 64
    assert "64 is for one GPU" in other.warnings[0] and "2048" in other.warnings[0]


def test_what_is_switched_on_and_has_no_effect_is_a_warning() -> None:
    file = vith14(data__use_gaussian_blur=True, data__use_color_distortion=True, meta__load_checkpoint=True)
    warnings = released_yaml(file, "f", own_data=True).warnings
    assert [re.findall(r"f: ([\w.]+) is true", w) for w in warnings] == [
        ["data.use_color_distortion"],
        ["data.use_gaussian_blur"],
        ["meta.load_checkpoint"],
    ]


def test_what_the_file_leaves_out_is_the_recipes_and_is_said() -> None:
    file = released_yaml(vith14(meta__pred_depth=None, optimization__lr=None), "f", own_data=True)
    assert settings(file.layer["recipe"], None, file.layer).predictor.depth == 12
    said = next(note for note in file.notes if note.startswith("not in the file"))
    assert set(said.split("has them: ")[1].split(", ")) == {"meta.pred_depth", "optimization.lr"}


def test_only_such_files_are_taken_for_one() -> None:
    assert has_released_groups({"meta": {"model_name": "vit_huge"}}) and has_released_groups(vith14())
    for ours in ({}, {"optim": {"lr": 1e-3}}, {"data": "x"}, {"optim": {}, "mask": {"min_keep": 3}}, {"mask": 3}):
        assert not has_released_groups(ours), ours


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mask": {"num_pred_mask": 4}}, "mask.num_pred_mask: no key .*; did you mean 'mask.num_pred_masks'"),
        ({"meta": {"batch_size": 4}}, "meta.batch_size: no key .*; did you mean 'data.batch_size'"),
        ({"loging": {"folder": "x"}}, "loging: no group .*; did you mean 'logging'"),
        ({"meta": {"model_name": "vit_hug"}}, "meta.model_name 'vit_hug' is unknown: .*; did you mean 'vit_huge'"),
        ({"meta": {"model_name": None}}, "meta.model_name is missing: choose from vit_tiny"),
        ({"data": {"batch_size": "many"}}, "data.batch_size: give a whole number of 1 or more, not 'many'"),
        ({"data": {"num_workers": -1}}, "data.num_workers: give a whole number of 0 or more, not -1"),
        ({"data": {"root_path": 3}}, "data.root_path and data.image_folder are paths, not 3"),
        ({"meta": {"use_bfloat16": 3}}, "meta.use_bfloat16: give true or false, not 3"),
        ({"optimization": {"ema": 0.996}}, "optimization.ema: give two numbers"),
        ({"logging": 3}, "logging: expected settings, as in 'logging: {folder: ...}', not 3"),
        ({"optimization": {"lr": "fast"}}, r"optimization.lr \(optim.lr\): input should be a valid number.*'fast'"),
        ({"optimization": {"ema": ["a", 1]}}, r"optimization.ema \(optim.ema_momentum\): input should be a valid number"),
        ({"mask": {"pred_mask_scale": [0.3, 0.2]}}, "target_scale: 0.3 is above 0.2"),
        ({}, r"/nowhere/set.*\(data.root_path and data.image_folder of .*vith14.yaml; --data gives your own\)"),
    ],
)
def test_a_mistake_is_a_sentence_about_the_files_own_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], sentence: str
) -> None:
    file = vith14()
    for group, values in change.items():
        file[group] = {**file.get(group, {}), **values} if isinstance(values, dict) else values
    (tmp_path / "vith14.yaml").write_text(yaml.safe_dump(file))
    own = ["--data", "emoji"] if change and "root_path" not in change.get("data", {}) else []
    with pytest.raises(SystemExit) as end:
        cli.main(["pretrain", "--config", str(tmp_path / "vith14.yaml"), "--out", str(tmp_path / "run"), *own])
    said = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and re.search(sentence, said), said
    assert not (tmp_path / "run").exists()


def test_a_word_of_the_users_is_not_laid_to_the_file() -> None:
    with pytest.raises(UserError, match=r"settings: optim\.lr: input"):
        pretrain("emoji", "run", config=vith14(), set="optim.lr=fast")


def test_a_run_of_such_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its images are root_path/image_folder, the user's words and method win, and the run's log names each key once."""
    draw = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(12):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "set" / f"{i}.png")
    (tmp_path / "in1k.yaml").write_text(yaml.safe_dump(vith14(data__root_path=f"{tmp_path}/", data__batch_size=4)))
    run = pretrain(config=tmp_path / "in1k.yaml", out=tmp_path / "run", method="ec_ijepa", set=BRIEF)
    config = run.config
    assert run.finished and config.data is not None and Path(config.data) == tmp_path / "set"
    assert (config.recipe, config.method, config.optim.batch_size) == ("ijepa_vith14", "ec_ijepa", 8)
    assert (config.optim.final_weight_decay, config.run.loader_threads, config.target.kind) == (0.4, 10, "features")
    assert config.images.mean == settings("ijepa_vith14", None).images.mean  # ImageNet's, not measured
    for text in ((run.path / "run.log").read_text(), caplog.text):
        for key in UNMAPPED:
            assert text.count(f"{key} is not used") == 1
        assert text.count("data.batch_size 4 is for one GPU") == 1
