"""What newcomers type first, and what it is called here: other programs' options and verbs, words without their group."""

import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from shlex import quote

from jepakit.core.errors import nearest

COUNTS = ("num_", "n_", "no_of_", "max_", "total_", "train_")  # before a name they say nothing that a key would
# Other programs' names of a setting where no key ends like them; {} is the value that was given
SETTINGS = {
    **dict.fromkeys(("e", "epoch"), "optim.epochs={}"),
    **dict.fromkeys(("b", "bs", "batch", "batchsize", "batch_size_per_gpu"), "optim.batch_size={}"),
    **dict.fromkeys(("learning_rate", "base_lr", "blr"), "optim.lr={}"),
    **dict.fromkeys(("min_lr", "end_lr"), "optim.final_lr={}"),
    **dict.fromkeys(("wd", "decay"), "optim.weight_decay={}"),
    **dict.fromkeys(("warmup", "warm_up"), "optim.warmup_epochs={}"),
    **dict.fromkeys(("iterations", "iters", "updates"), "optim.steps={}"),
    **dict.fromkeys(("ema", "momentum", "ema_momentum", "ema_decay", "tau"), "optim.ema_momentum={}"),
    "final_momentum": "optim.final_ema_momentum={}",
    **dict.fromkeys(("accum_iter", "grad_accum", "gradient_accumulation_steps", "accumulation_steps"), "optim.accumulate={}"),
    **dict.fromkeys(("grad_clip", "clip", "gradient_clip_val"), "optim.clip_grad={}"),
    **dict.fromkeys(("img_size", "input_size", "crop_size", "resolution", "imgsz"), "images.size={}"),
    **dict.fromkeys(("in_chans", "in_channels"), "images.channels={}"),
    **dict.fromkeys(("patch", "ps"), "encoder.patch_size={}"),
    **dict.fromkeys(("embed_dim", "hidden_size", "dim"), "encoder.width={}"),
    **dict.fromkeys(("num_layers", "layers"), "encoder.depth={}"),
    **dict.fromkeys(("arch", "a", "model", "backbone", "encoder", "net", "vit"), "encoder.size={}"),
    **dict.fromkeys(("mask_ratio", "masking_ratio"), "masking.kind=random masking.target_ratio={}"),
    **dict.fromkeys(("workers", "j", "loader_workers", "cpus"), "run.loader_threads={}"),
    **dict.fromkeys(("gpu", "gpus", "gpu_id", "cuda", "accelerator"), "run.device=cuda (cuda:1 is the second)"),
    **dict.fromkeys(("cpu", "no_cuda"), "run.device=cpu"),
    **dict.fromkeys(("amp", "bf16", "fp16", "half", "mixed_precision"), "run.precision=bf16"),
    **dict.fromkeys(("dtype", "fp32"), "run.precision=fp32"),
    **dict.fromkeys(("log_every", "log_interval", "print_freq", "log_freq"), "run.log_every_steps={}"),
    **dict.fromkeys(("save_every", "save_freq", "save_interval", "checkpoint_every"), "run.save_every_steps={}"),
}
_SIZES = ("tiny", "small", "base", "large", "huge", "giant")  # in the names of other programs' models
OPTIONS = {
    **dict.fromkeys(("o", "output", "output_dir", "output_path", "out_dir", "outdir", "outdir_path"), "--out"),
    **dict.fromkeys(("save_dir", "save_path", "save", "log_dir", "logdir", "work_dir", "run_dir", "exp_dir", "dest"), "--out"),
    **dict.fromkeys(("d", "i", "data_path", "data_dir", "data_root", "dataset", "dataset_path", "dataset_dir", "root"), "--data"),
    **dict.fromkeys(("train_data", "train_dir", "input", "input_dir", "images", "image_dir", "img_dir", "folder"), "--data"),
    **dict.fromkeys(("path", "dir", "src", "source"), "--data"),
    **dict.fromkeys(("checkpoint", "ckpt", "resume_from", "resume_from_checkpoint", "from_checkpoint", "continue"), "--resume"),
    **dict.fromkeys(("pretrained", "pretrained_weights", "weights", "init", "load_from", "finetune_from"), "--init-from"),
    **dict.fromkeys(("c", "cfg", "yaml", "config_file", "config_path"), "--config"),
    **dict.fromkeys(("f", "force", "replace", "exist_ok"), "--overwrite"),
    **dict.fromkeys(("t", "task", "probe", "probes"), "--tasks"),
    **dict.fromkeys(("label", "target", "targets"), "--labels"),
    **dict.fromkeys(("preset",), "--recipe"),
    **dict.fromkeys(("gpu", "gpus", "num_gpus", "n_gpus"), "--devices"),
    **dict.fromkeys(("workers", "num_workers", "j"), "--threads"),
}
FLAGS = ("--overwrite",)  # options that take no value
VERBS = {
    **dict.fromkeys(("train", "fit", "run", "start", "pretraining"), "jepakit pretrain --data SRC --out RUN"),
    **dict.fromkeys(("resume", "continue"), "jepakit pretrain --resume {run}"),
    **dict.fromkeys(("eval", "test", "validate", "probe", "compare"), "jepakit evaluate {run}"),
    **dict.fromkeys(("knn", "linear", "finetune", "fine-tune", "segmentation"), "jepakit evaluate {run} --tasks {verb}"),
    **dict.fromkeys(("plot", "show", "visualize", "visualise"), "jepakit report {run}"),
    **dict.fromkeys(("info", "inspect", "stats", "check"), "jepakit data check SRC"),
    **dict.fromkeys(("pack", "preprocess", "prepare", "convert-data"), "jepakit data pack SRC --out PACK"),
    "version": "jepakit --version",
    **dict.fromkeys(("list", "models", "presets", "configs", "config"), "jepakit recipes"),
    **dict.fromkeys(
        ("encode", "embeddings", "features", "extract", "predict", "infer", "inference", "load"),
        "jepakit embed {run} --data SRC --out FILE.parquet, or in Python jepakit.load('{run}').embed(images)",
    ),
    **dict.fromkeys(("save", "convert", "deploy"), "jepakit export {run} --format hf --out DIR"),
    **dict.fromkeys(("publish", "upload"), "jepakit push {run} OWNER/NAME"),
}


def keys_named(word: str, keys: Iterable[str]) -> list[str]:
    """Dotted keys that a word may mean: those that end with it, or that are nearly it with their group before them."""
    known = [*keys]
    groups = {key.rpartition(".")[0] for key in known}
    leaves = [key for key in known if key not in groups]
    name = _plain(word)
    for each in _names(word):
        if found := [key for key in leaves if key.rpartition(".")[2] == each] or [k for k in leaves if _plain(k) == each]:
            return found
    joined = {_plain(key): key for key in leaves if "." in key}
    ends = {key.rpartition(".")[2]: key for key in leaves}
    near = [joined[each] for each in get_close_matches(name, joined, n=1, cutoff=0.85)]
    return near or [ends[each] for each in get_close_matches(name, ends, n=1, cutoff=0.85)]


def suggestion(word: str, keys: Iterable[str]) -> str:
    """`"; did you mean 'optim.lr'?"` for an unknown key, or `""`."""
    known = [*keys]
    alias = next((SETTINGS[name].partition("=")[0] for name in _names(word) if name in SETTINGS), None)
    if "." in word and (near := nearest(word, known)):
        return near
    meant = [alias] if alias in known else keys_named(word.rpartition(".")[2], known)
    return f"; did you mean {' or '.join(map(repr, meant))}?" if meant else nearest(word, known)


def option_hint(name: str, value: str | None, options: Iterable[str], keys: Sequence[str], presets: Mapping[str, str]) -> str:
    """What to write instead of an unknown option, with its value; '' where nothing is known.

    options: those of the verb; keys: the settings that it takes as words; presets: the option for each recipe and method.
    """
    words, known = _names(name), [*options]
    given = "VALUE" if value is None else quote(value)
    option = next((OPTIONS[word] for word in words if OPTIONS.get(word) in known), None)
    if option is not None:
        return option if option in FLAGS else f"{option} {given}"
    template = next((SETTINGS[word] for word in words if word in SETTINGS), "")
    if (key := template.partition("=")[0]) in keys:
        if key == "encoder.size":
            if presets.get(given) in known:
                return f"{presets[given]} {given}"
            given = next((size for size in _SIZES if size in given.lower()), given)
        return template.format(given)
    return " or ".join(f"{key}={given}" for key in keys_named(name, keys))


def verb_hint(name: str, rest: Sequence[str]) -> str:
    """What to type instead of an unknown verb; '' where nothing is known."""
    words = [word for word in rest if not word.startswith("-")]
    if name.lower() in VERBS:
        return VERBS[name.lower()].format(verb=name.lower(), run=quote(words[0]) if words else "RUN")
    return f"jepakit pretrain --data {quote(name)} --out RUN" if is_place(name) else ""


def is_place(word: str) -> bool:
    """Whether a word that is no setting looks like a path."""
    return "/" in word or word.startswith("~") or os.path.exists(word)


def _names(word: str) -> list[str]:
    """A word as keys are spelt, as it is and without what only says that it is a number."""
    name = _plain(word)
    return [*dict.fromkeys([name, *(name.removeprefix(count) for count in COUNTS)])]


def _plain(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_").replace(".", "_")
