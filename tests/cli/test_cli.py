"""What a user types: mistakes end in one sentence, and the settings are what they say."""

import ast
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ValidationError

import jepakit
from bomb import Bomb
from jepakit import cli
from jepakit.artifacts.run import Run
from jepakit.config.config import Config, fields, known_keys, models_in, overrides, read_yaml, resolve
from jepakit.config.recipes import RECIPES, settings
from jepakit.core.errors import UserError
from jepakit.model.method import METHODS
from jepakit.training.train import pretrain

SOURCE = Path(jepakit.__file__).parent
SHAPE = "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=4 predictor.width=8 predictor.depth=1"
TINY = f"{SHAPE} images.size=16 masking.min_keep=2 optim.batch_size=8 optim.steps=2 run.threads=1".split()
G = "images.size=16 encoder.patch_size=4"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad inputs, and a finished run."""
    root = tmp_path_factory.mktemp("world")
    for place, count in (("photos", 10), ("one", 1), ("labelled/a", 6), ("labelled/b", 6)):
        (root / place).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{i}.png")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken/x.png").write_text("no image")
    (root / "file").write_text("x")
    (root / "full").mkdir()
    (root / "full/thesis.txt").write_text("precious")
    (root / "broken.yaml").write_text("optim: {lr: [1\n  - :")
    (root / "binary.yaml").write_bytes(bytes(range(256)))
    (root / "list.yaml").write_text("- 1\n- 2\n")
    (root / "unknown.yaml").write_text("optim: {learning_rate: 1}\nencoder: {}\n")
    (root / "group.yaml").write_text("optimm: {lr: 1.0}\n")
    (root / "type.yaml").write_text("optim: {lr: fast}\n")
    (root / "recipe.yaml").write_text("recipe: [1]\n")
    (root / "number.yaml").write_text("1: 2\n")
    (root / "bomb.pth.tar").write_bytes(pickle.dumps({"encoder": Bomb(root / "ran")}))
    pretrain(str(root / "labelled"), root / "run", method="ijepa", set=TINY)
    for name in ("cut", "swapped"):
        subprocess.run(["cp", "-a", str(root / "run"), str(root / name)], check=True)
    for weights in (root / "cut/checkpoints").glob("step-*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    for weights in (root / "swapped/checkpoints").glob("step-*/model.safetensors"):
        weights.write_bytes(pickle.dumps(Bomb(root / "ran")))
    return root


def snapshot(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.lstat().st_size for p in root.rglob("*") if p.name != "run.log"}


P = "pretrain --data {w}/photos --out {w}/new"
MISTAKES = {
    "unknown flag": ("pretrain --dta {w}/photos --out {w}/new", ["--dta", "--data"]),
    "unknown verb": ("pretran --data {w}/photos", ["pretran", "'pretrain'"]),
    "unknown key": (P + " optim.learningrate=1", ["optim.learningrate", "unknown key"]),
    "key misspelt": (P + " optim.weigth_decay=1", ["'optim.weight_decay'"]),
    "unknown group": (P + " optimizer.lr=1", ["unknown key"]),
    "no equals sign": (P + " optim.lr", ["group.key=value"]),
    "no value": (P + " optim.lr=", ["optim.lr"]),
    "wrong type": (P + " optim.lr=fast", ["optim.lr", "'fast'"]),
    "not whole": (P + " optim.batch_size=8.5", ["optim.batch_size", "8.5"]),
    "group as value": (P + " optim=3", ["optim"]),
    "broken value": (P + " images.size=[16", ["images.size", "YAML"]),
    "too short a list": (P + " images.crop_scale=[0.5]", ["images.crop_scale"]),
    "below range": (P + " optim.lr=-1", ["optim.lr", "greater than 0"]),
    "not a number": (P + " optim.lr=.nan", ["optim.lr"]),
    "negative seed": (P + " seed=-1", ["seed"]),
    "above range": (P + " images.max_bad=2", ["images.max_bad"]),
    "order of a range": (P + " masking.target_scale=[0.5,0.1]", ["target_scale"]),
    "unknown kind of masks": (P + " masking.kind=blocks", ["masking"]),
    "key of another kind": (P + " masking.kind=quadrants masking.target_scale=[0.1,0.2]", ["target_scale"]),
    "no multiple": (P + " images.size=30 encoder.patch_size=4", ["images.size", "nearest is"]),
    "heads": (P + " encoder.width=16 encoder.heads=3", ["heads"]),
    "parts of a batch": (P + " optim.batch_size=8 optim.accumulate=3", ["accumulate"]),
    "no such device": (P + " run.device=tpu", ["run.device=tpu"]),
    "no cuda here": (P + " run.device=cuda:99", ["run.device=cuda:99"]),
    "impossible masks": (f"{P} {G} masking.min_keep=15", ["masking.min_keep", "set"]),
    "grid too small": (P + " images.size=16 encoder.patch_size=8", ["4x4"]),
    "batch too large": (f"{P} {G} optim.batch_size=64 masking.min_keep=2", ["optim.batch_size=8"]),
    "one image": ("pretrain --data {w}/one --out {w}/new", ["one image"]),
    "missing folder": ("pretrain --data {w}/gone --out {w}/new", ["no such folder", "gone"]),
    "empty folder": ("pretrain --data {w}/empty --out {w}/new", ["no images"]),
    "file for a folder": ("pretrain --data {w}/file --out {w}/new", ["is a file"]),
    "nothing readable": ("pretrain --data {w}/broken --out {w}/new", ["no readable image"]),
    "no data": ("pretrain --out {w}/new", ["--data"]),
    "no out": ("pretrain --data {w}/photos", ["--out"]),
    "out is a run": ("pretrain --data {w}/photos --out {w}/run TINY", ["--resume", "--overwrite"]),
    "out is a file": ("pretrain --data {w}/photos --out {w}/file TINY", ["is a file"]),
    "out is under a file": ("pretrain --data {w}/photos --out {w}/file/new TINY", ["cannot write"]),
    "out holds other files": ("pretrain --data {w}/photos --out {w}/full TINY", ["thesis.txt"]),
    "overwrite spares other files": ("pretrain --data {w}/photos --out {w}/full --overwrite TINY", ["thesis.txt"]),
    "no such YAML": ("pretrain --config {w}/gone.yaml --out {w}/new", ["gone.yaml"]),
    "folder as YAML": ("pretrain --config {w}/photos --out {w}/new", ["photos"]),
    "broken YAML": ("pretrain --config {w}/broken.yaml --out {w}/new", ["not valid YAML"]),
    "binary YAML": ("pretrain --config {w}/binary.yaml --out {w}/new", ["not valid YAML"]),
    "list YAML": ("pretrain --config {w}/list.yaml --out {w}/new", ["list.yaml"]),
    "unknown key in YAML": ("pretrain --config {w}/unknown.yaml --out {w}/new", ["optim.learning_rate", "unknown key"]),
    "unknown group in YAML": ("pretrain --config {w}/group.yaml --out {w}/new", ["optimm", "'optim'"]),
    "wrong type in YAML": ("pretrain --config {w}/type.yaml --out {w}/new", ["optim.lr", "'fast'"]),
    "recipe in YAML is no name": ("pretrain --config {w}/recipe.yaml --out {w}/new", ["recipe"]),
    "key in YAML is a number": ("pretrain --config {w}/number.yaml --out {w}/new", ["1"]),
    "unknown recipe": (P + " --recipe ijepa_vitb61", ["'ijepa_vitb16'"]),
    "unknown recipe as a setting": (P + " recipe=smal", ["'small'"]),
    "number for a recipe": (P + " recipe=5", ["'5'"]),
    "unknown method": (P + " --method ec_ijpa", ["'ec_ijepa'"]),
    "unknown method as a setting": (P + " method=ijpa", ["'ijepa'"]),
    "another recipe than the file's": ("pretrain --config {w}/run/config.yaml --recipe demo --out {w}/new", ["recipe"]),
    "recipes of an unknown name": ("recipes smal", ["'small'"]),
    "unknown task": ("evaluate {w}/run --tasks knm", ["'knn'"]),
    "resume of no run": ("pretrain --resume {w}/photos", ["is not a run"]),
    "resume of nothing": ("pretrain --resume {w}/gone", ["is not a run"]),
    "resume with another setting": ("pretrain --resume {w}/run optim.lr=1", ["only run.*", "optim"]),
    "resume with other data": ("pretrain --resume {w}/run --data {w}/photos", ["12 images", "now there are 10"]),
    "resume with a method": ("pretrain --resume {w}/run --method ijepa", ["--resume"]),
    "resume of a cut checkpoint": ("pretrain --resume {w}/cut", ["no checkpoint", "whole"]),
    "resume of a pickle bomb": ("pretrain --resume {w}/swapped", ["no checkpoint", "whole"]),
    "evaluation of no run": ("evaluate {w}/photos", ["is not a run"]),
    "evaluation of a cut checkpoint": ("evaluate {w}/cut", ["no checkpoint", "whole"]),
    "evaluation of a pickle bomb": ("evaluate {w}/bomb.pth.tar", ["bomb.pth.tar is refused"]),
    "evaluation on nothing": ("evaluate {w}/run --data {w}/gone", ["no such folder"]),
    "report of no run": ("report {w}/photos", ["photos"]),
    "report of nothing": ("report {w}/gone", ["gone"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_sentence_code_2_and_nothing_written(
    name: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, words = MISTAKES[name]
    arguments = [a for part in command.format(w=world).split() for a in (TINY if part == "TINY" else [part])]
    before = snapshot(world)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert all(word in said.err for word in words), said.err
    assert not said.out
    assert snapshot(world) == before
    assert not (world / "ran").exists()  # no bomb went off


def test_from_a_shell_it_is_the_same(world: Path) -> None:
    tries = [f"pretrain --data {world}/gone --out {world}/new", "pretrain --dta x"]
    running = [
        subprocess.Popen([sys.executable, "-m", "jepakit", *t.split()], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for t in tries
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2 and not out
        assert err.startswith("error: ") and err.count("\n") == 1
    assert not (world / "new").exists()


def test_a_folder_that_a_kill_left_half_made_may_be_overwritten(world: Path, tmp_path: Path) -> None:
    (tmp_path / ".tmp-config").write_text("optim:")  # config.yaml itself is renamed into place
    (tmp_path / ".tmp-metrics").write_text("{")
    assert pretrain(str(world / "photos"), tmp_path, overwrite=True, method="ijepa", set=TINY).finished
    assert not (tmp_path / ".tmp-metrics").exists()


# ---- the settings are what they say


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_same_by_flag_by_setting_and_over_a_file(world: Path, tmp_path: Path, method: str) -> None:
    photos, steps = str(world / "photos"), [*TINY, "optim.steps=1", "run.precision=fp32"]
    steps += ["regularizer.projector=[]"] if METHODS[method]["regularizer"] is not None else []
    by_flag = pretrain(photos, tmp_path / "a", method=method, set=steps).config
    by_setting = pretrain(photos, tmp_path / "b", set=[*steps, f"method={method}"]).config
    over_a_file = pretrain(photos, tmp_path / "c", config=world / "run/config.yaml", method=method, set=steps).config
    for config in (by_flag, by_setting, over_a_file):
        assert config.method == method
        assert (config.conditioning is None) == (METHODS[method]["conditioning"] is None)
        assert (config.regularizer is None) == (METHODS[method]["regularizer"] is None)
        assert config.target.kind == METHODS[method]["target"]["kind"]
    assert by_flag == by_setting


def test_a_recipe_is_the_same_by_flag_and_by_setting(world: Path, tmp_path: Path) -> None:
    small = [w for w in TINY if not w.startswith("predictor")] + ["predictor.width=16"]
    a = pretrain(str(world / "photos"), tmp_path / "a", recipe="demo", set=small).config
    b = pretrain(str(world / "photos"), tmp_path / "b", set=[*small, "recipe=demo"]).config
    assert a == b and a.predictor.depth == 2


def test_the_eleven_recipes_are_there_and_the_papers_keep_the_released_masks() -> None:
    papers = [f"ijepa_{size}" for size in ("vitb16", "vitl16", "vith14", "vith16_448", "vitg16")]
    papers += ["ec_ijepa_vitl16", "ec_ijepa_vith14", "c_jepa_vitb16", "c_jepa_vitl16"]
    assert set(RECIPES) == {"demo", "small", *papers} and len(RECIPES) == 11
    for name in RECIPES:
        config = settings(name, None)
        assert config.masking.kind == "multi_block" and config.recipe == name
        assert (config.masking.compat == "released") == (name in papers)
        config.masking.check(config.grid)
        assert config == resolve(json.loads(config.model_dump_json()))


def test_pixels_are_asked_of_the_crop_that_was_seen_whatever_the_recipe_has_for_features() -> None:
    assert settings("small", None).images.target_crop == "own"
    pixels = settings("small", "mae_pixels")
    assert pixels.images.target_crop == "same" and pixels.target.kind == "pixels"
    assert settings("small", None, overrides(["target.kind=pixels"])).images.target_crop == "same"
    with pytest.raises(UserError, match="target_crop=same"):  # who asks for both is told
        settings("small", "mae_pixels", overrides(["images.target_crop=own"]))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_prints_every_value_with_its_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes", name])
    about, lines = RECIPES[name].reached, capsys.readouterr().out.splitlines()
    assert tuple(lines[1 : 1 + len(about)]) == about
    lines = lines[1 + len(about) :]
    config = settings(name, None).model_dump()
    printed = {}
    for line in lines:
        key, rest = line.split(None, 1)
        value, source = rest[:27].strip(), rest[27:]
        assert source.startswith(" ") and source.strip(), line
        printed[key] = value
    for key in RECIPES[name].values:
        assert key in printed
    for key in known_keys():
        here: object = config
        for part in key.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        if here is not None and not isinstance(here, dict):
            assert printed[key] == str(here)


def test_help_is_there_at_once_for_every_verb_without_torch() -> None:
    code = (
        "import sys\nfrom jepakit import cli\n"
        "verbs = 'demo pretrain evaluate embed search report recipes'.split()\n"
        "for words in (['--help'], *([verb, '--help'] for verb in verbs)):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_command_line_needs_no_package_that_it_does_not_declare() -> None:
    """What is declared for all may be imported anywhere; what an extra brings inside a function alone, where it is used."""
    declared, extras = (SOURCE.parents[1] / "pyproject.toml").read_text().lower().split("[project.optional-dependencies]")
    # the last two come with the package named
    names = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "scipy": "scikit-learn", "markupsafe": "jinja2"}
    travels = "artifacts/export/modeling_jepakit.py"  # a file that export copies, and nothing here imports
    for file, tree in trees().items():
        first = {id(node) for part in tree.body for node in _run_at_import(part)}
        for node in ast.walk(tree):
            used = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            used += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in used} - set(sys.stdlib_module_names) - {"jepakit"}:
                package = f'"{names.get(top, top).lower()}>='
                late = id(node) not in first or str(file) == travels
                assert package in declared or (late and package in extras), (file, top)


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and what it holds, but for the bodies of functions, and what is for type checkers alone."""
    yield node
    typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    if not typing and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _run_at_import(child)


def test_a_command_without_a_verb_says_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2 and "Usage" in "".join(capsys.readouterr())


def test_a_run_written_to_yaml_reads_back_as_it_was(world: Path) -> None:
    run = Run.open(world / "run")
    assert resolve(read_yaml(run.path / "config.yaml")) == run.config
    assert (world / "run/config.yaml").read_text().count("data:") == 1


# ---- the house


def test_every_public_name_is_there_whatever_was_imported_before() -> None:
    firsts = ["sys", "jepakit.reporting", "jepakit.study", "jepakit.metrics, jepakit.data.formats.pack, jepakit.cli"]
    code = (
        "import os, torch, scipy.ndimage, scipy.special, matplotlib.figure\n"  # what costs time to import, once
        f"for first in {firsts}:\n"
        "    if os.fork():\n"
        "        assert not os.wait()[1], first\n"
        "        continue\n"
        "    exec('import ' + first)\n"
        "    exec('from jepakit import *')\n"
        "    import jepakit, jepakit.evaluation, jepakit.planning, inspect\n"
        "    assert len(set(jepakit.__all__)) == len(jepakit.__all__) and {'pretrain', 'report'} <= {*jepakit.__all__}\n"
        "    for name in jepakit.__all__:\n"
        "        value = getattr(jepakit, name)\n"
        "        module = name in ('metrics', 'pictures') and inspect.ismodule(value)\n"
        "        assert value is globals()[name] and (callable(value) or module), name\n"
        "    break\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_folder_has_the_name_of_a_public_function() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir()}
    modules = {path.stem for path in SOURCE.glob("*.py")}  # importing one sets the package's attribute of its name
    assert not (folders | modules) & ({*jepakit.__all__} - {"metrics", "pictures"})


def models(model: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    yield model
    for info in model.model_fields.values():
        for part in models_in(info.annotation):
            yield from models(part)


def test_settings_are_frozen_closed_and_described() -> None:
    found = set(models())
    assert len(found) >= 10
    for model in found:
        assert model.model_config.get("frozen") is True and model.model_config.get("extra") == "forbid", model
    config = Config()
    for part in (config, config.optim, config.masking, config.encoder, config.run):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, next(iter(type(part).model_fields)), 1)
    groups = {key.rsplit(".", 1)[0] for key in known_keys() if "." in key}
    undescribed = {key for key, about in fields() if not about and key not in groups and not key.endswith((".kind", "loss"))}
    assert not undescribed


def trees() -> dict[str, ast.Module]:
    return {str(p.relative_to(SOURCE)): ast.parse(p.read_text()) for p in sorted(SOURCE.rglob("*.py"))}


def names_read() -> set[str]:
    """Names that code reads: attributes that are not called as methods, and keys of mappings; validators do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and any("validator" in ast.unparse(d) for d in node.decorator_list):
            return
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                if node.func.attr == "get" and node.args and isinstance(node.args[0], ast.Constant):
                    found.add(str(node.args[0].value))
                visit(node.func.value)  # x.size(0) reads no setting named size
            else:
                visit(node.func)
            for child in (*node.args, *node.keywords):
                visit(child)
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found.add(str(node.slice.value))
        for child in ast.iter_child_nodes(node):
            visit(child)

    for tree in trees().values():
        visit(tree)
    return found


def test_there_is_no_setting_that_no_code_reads() -> None:
    read = names_read()
    assert "no_such_setting" not in read and "momentum" in read
    assert not {key for key in known_keys() if key.rpartition(".")[2] not in read}


def test_another_programs_folder_is_never_overwritten(world: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights.pt").write_text("theirs")
    with pytest.raises(UserError, match="holds"):
        pretrain(str(world / "photos"), tmp_path, overwrite=True, method="ijepa", set=TINY)
    assert (tmp_path / "checkpoints" / "weights.pt").read_text() == "theirs"


def test_no_images_named_is_an_error_and_not_a_run_on_the_embedded_ones(tmp_path: Path) -> None:
    for data in ("", None):
        with pytest.raises(UserError, match="which images"):
            pretrain(data, tmp_path / "run", method="ijepa", set=TINY)


def test_the_method_is_named_after_its_parts(world: Path, tmp_path: Path) -> None:
    words = [*TINY, "optim.steps=1", "regularizer.weight=0.1", "regularizer.projector=[]"]
    assert pretrain(world / "photos", tmp_path / "run", method="ijepa", set=words).config.method == "c_jepa"


def test_ctrl_c_says_stopped_and_leaves_a_code_that_stops_a_chain_of_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jepakit.config.recipes.table", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["recipes", "demo"])
    assert caught.value.code == 130 and capsys.readouterr().err.endswith("stopped\n")
