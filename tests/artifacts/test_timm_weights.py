"""Weights of other libraries: the function that a few lines of plain torch make of them, or a sentence; nothing runs."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import jepakit
from bomb import Bomb
from jepakit.artifacts.released import save_released
from jepakit.core.errors import UserError
from jepakit.model.jepa import JEPA
from jepakit.model.method import Method
from jepakit.model.vit import sincos

WIDTH, DEPTH, HEADS, PATCH, SIDE = 16, 2, 2, 4, 4  # patches of 4 pixels, 4 x 4 of them
State = dict[str, Tensor]


def timm_state(*, before: int = 0, learnt: bool = True, scale: bool = False, patch: int = PATCH, seed: int = 0) -> State:
    """A small ViT in timm's names, random throughout; before: tokens that have positions before the patches'."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.3

    state = {"patch_embed.proj.weight": random(WIDTH, 3, patch, patch), "patch_embed.proj.bias": random(WIDTH)}
    fixed = torch.from_numpy(sincos(WIDTH, (SIDE, SIDE))).float()
    patches = random(SIDE * SIDE, WIDTH) if learnt else fixed
    state["pos_embed"] = torch.cat([random(before, WIDTH), patches])[None]
    for i in range(DEPTH):
        maps = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (32, WIDTH), "mlp.fc2": (WIDTH, 32)}
        for name, shape in maps.items():
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = random(*shape), random(shape[0])
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = 1 + random(WIDTH), random(WIDTH)
        if scale:
            state[f"blocks.{i}.ls1.gamma"], state[f"blocks.{i}.ls2.gamma"] = random(WIDTH), random(WIDTH)
    return state | {"norm.weight": 1 + random(WIDTH), "norm.bias": random(WIDTH)}


def reference(state: State, images: Tensor) -> Tensor:
    """A pre-norm ViT without class token in plain torch (Dosovitskiy et al., equations 2 and 3), and LayerScale."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"][:, -SIDE * SIDE :]
    for i in range(DEPTH):
        own = {name.removeprefix(f"blocks.{i}."): value for name, value in state.items() if name.startswith(f"blocks.{i}.")}

        def linear(name: str, y: Tensor, own: State = own) -> Tensor:
            return F.linear(y, own[f"{name}.weight"], own[f"{name}.bias"])

        def norm(name: str, y: Tensor, own: State = own) -> Tensor:
            return F.layer_norm(y, (WIDTH,), own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

        q, k, v = linear("attn.qkv", norm("norm1", x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2)) / (WIDTH / HEADS) ** 0.5).softmax(-1) @ v
        x = x + linear("attn.proj", mixed.transpose(1, 2).flatten(2)) * own.get("ls1.gamma", torch.ones(WIDTH))
        y = linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))
        x = x + y * own.get("ls2.gamma", torch.ones(WIDTH))
    return F.layer_norm(x, (WIDTH,), state["norm.weight"], state["norm.bias"], 1e-6)


def pictures(side: int = 16) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def dino(state: State) -> dict[str, Any]:
    other = {f"module.backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
    return {
        "teacher": {**{f"backbone.{name}": value for name, value in state.items()}, "head.mlp.0.weight": torch.zeros(2, 2)},
        "student": other,
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
    }


WRAPPED = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=1.0)},  # MAE
    "module": lambda s: {"state_dict": {f"module.{n}": v for n, v in s.items()}},
    "lightning": lambda s: {"state_dict": {f"model.backbone.{n}": v for n, v in s.items()}, "epoch": 3},
    "dino": dino,
    "encoder only": lambda s: {"encoder": {f"module.{n}": v for n, v in s.items()}, "epoch": 1},
    "both encoders": lambda s: {
        "target_encoder": {f"module.{n}": v for n, v in s.items()},
        "encoder": {f"module.{n}": 0 * v for n, v in s.items()},
    },
}


@pytest.mark.parametrize("learnt", [True, False])
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_state_dict_without_a_class_token_is_the_function_it_says(wrapped: str, learnt: bool, tmp_path: Path) -> None:
    state = timm_state(learnt=learnt)
    torch.save(WRAPPED[wrapped](state), tmp_path / "vit.pth")
    encoder = jepakit.load(tmp_path / "vit.pth", heads=HEADS)
    close(encoder(pictures()), reference(state, pictures()))
    assert encoder.vit.config.learned_positions == learnt


def test_both_encoders_of_a_file_can_be_asked_for(tmp_path: Path) -> None:
    torch.save(dino(timm_state()), tmp_path / "dino.pth")
    student = jepakit.load(tmp_path / "dino.pth", which="encoder", heads=HEADS)
    assert float(student.vit.norm.weight.abs().max()) == 0


def test_safetensors_are_read_and_timms_config_says_the_normalisation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = timm_state()
    save_file(state, tmp_path / "model.safetensors")
    close(jepakit.load(tmp_path / "model.safetensors", heads=HEADS)(pictures()), reference(state, pictures()))
    assert "does not say how images were normalised" in caplog.text and "ImageNet" in caplog.text
    caplog.clear()
    about = {"architecture": "vit_test", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    for place in (tmp_path, tmp_path / "model.safetensors"):
        images = jepakit.load(place, heads=HEADS).images
        assert images.mean == (0.5, 0.4, 0.3) and images.std == (0.2, 0.3, 0.4) and images.height_width == (16, 16)
    assert "normalised" not in caplog.text


TOKENS = {"cls_token": 1, "dist_token": 1, "reg_token": 3}


@pytest.mark.parametrize("with_positions", [True, False])
@pytest.mark.parametrize("names", [["cls_token"], ["cls_token", "reg_token"], ["cls_token", "dist_token"]])
def test_the_class_tokens_slot_is_left_out_and_the_patches_keep_theirs(
    names: list[str], with_positions: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {name: TOKENS[name] for name in names}
    state = timm_state(before=sum(counts.values()) if with_positions else 0)
    extra = {name: torch.randn(1, count, WIDTH) for name, count in counts.items()}
    head = {"head.weight": torch.zeros(5, WIDTH), "mask_token": torch.zeros(1, 1, WIDTH), "decoder_blocks.0.x": torch.zeros(1)}
    torch.save(state | extra | head, tmp_path / "vit.pth")
    encoder = jepakit.load(tmp_path / "vit.pth", heads=HEADS)
    assert torch.equal(encoder.vit.positions, state["pos_embed"][0, -16:])
    close(encoder(pictures()), reference(state, pictures()))
    assert f"without its {', '.join(names)}" in caplog.text
    for name in (*names, *head):
        assert name in caplog.text


def test_layer_scale_is_folded_into_the_same_function(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = timm_state(scale=True)
    torch.save(state, tmp_path / "vit.pth")
    close(jepakit.load(tmp_path / "vit.pth", heads=HEADS)(pictures()), reference(state, pictures()))
    assert "LayerScale's 4 factors folded" in caplog.text
    beit = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for n, v in state.items()}
    torch.save(beit, tmp_path / "beit.pth")
    close(jepakit.load(tmp_path / "beit.pth", heads=HEADS)(pictures()), reference(state, pictures()))
    plain = {n: v for n, v in state.items() if "gamma" not in n}
    assert float((reference(plain, pictures()) - reference(state, pictures())).abs().max()) > 0.1  # they matter


def test_a_bias_that_was_never_there_is_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {n: (0 * v if n.endswith("qkv.bias") else v) for n, v in timm_state().items()}
    torch.save({n: v for n, v in state.items() if not n.endswith("qkv.bias")}, tmp_path / "vit.pth")
    close(jepakit.load(tmp_path / "vit.pth", heads=HEADS)(pictures()), reference(state, pictures()))
    assert "qkv.bias is zero" in caplog.text


def test_another_image_size_has_learnt_positions_as_transformers_makes_them(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    settings = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 32}
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**settings, image_size=16, patch_size=PATCH)).eval()
    model.save_pretrained(tmp_path)
    encoder = jepakit.load(tmp_path)
    stored = model.embeddings.position_embeddings
    assert torch.equal(encoder.vit.positions, stored[0, 1:])
    for height, width in ((24, 24), (8, 8), (40, 12), (16, 20)):
        grid = (height // PATCH, width // PATCH)
        tokens = torch.zeros(1, 1 + grid[0] * grid[1], WIDTH)
        theirs = model.embeddings.interpolate_pos_encoding(tokens, height, width)[0, 1:]
        assert torch.equal(encoder.positions_of(grid), theirs)


@pytest.mark.parametrize("kind", ["vit", "vit_mae"])
def test_a_folder_of_a_plain_vit_is_its_patch_tokens_without_the_class_token(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import transformers as t

    shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 32}
    torch.manual_seed(0)
    config, model = (t.ViTConfig, t.ViTModel) if kind == "vit" else (t.ViTMAEConfig, t.ViTMAEForPreTraining)
    more = {} if kind == "vit" else {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    theirs = model(config(**shape, **more, image_size=16, patch_size=PATCH)).eval()
    vit = theirs if kind == "vit" else theirs.vit
    if kind == "vit_mae":
        vit.embeddings.position_embeddings.data[0, 1:] = torch.from_numpy(sincos(WIDTH, (SIDE, SIDE)))
    theirs.save_pretrained(tmp_path)
    own = jepakit.load(tmp_path)
    assert torch.equal(own.vit.patch_embed.proj.weight, vit.embeddings.patch_embeddings.projection.weight)
    with torch.no_grad():  # transformers' own layers, without the class token
        x = vit.embeddings.patch_embeddings(pictures()) + vit.embeddings.position_embeddings[:, 1:]
        for layer in vit.layers if hasattr(vit, "layers") else vit.encoder.layer:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        close(own(pictures()), vit.layernorm(x))
    assert own.vit.norm.eps == 1e-12 and "without its class token" in caplog.text
    assert own.vit.config.learned_positions == (kind == "vit")  # MAE's are the sin-cos ones


FOREIGN = {
    "queries and keys normalised": {"blocks.0.attn.q_norm.weight": torch.ones(8)},
    "rotary": {"rope.periods": torch.ones(4)},
    "gated MLP": {"blocks.0.mlp.w12.weight": torch.ones(4, 4)},
    "parallel": {"blocks.0.attns.1.qkv.weight": torch.ones(4, 4)},
    "relative positions": {"blocks.0.attn.relative_position_bias_table": torch.ones(4, 2)},
    "norm before its blocks": {"norm_pre.weight": torch.ones(WIDTH)},
    "has no place|have no place": {"blocks.0.adapter.weight": torch.ones(2)},
    "another patch embedding": {"patch_embed.backbone.stem.conv.weight": torch.ones(2)},
}


@pytest.mark.parametrize("words", FOREIGN)
def test_another_architecture_is_named_in_one_sentence(words: str, tmp_path: Path) -> None:
    torch.save(timm_state() | FOREIGN[words], tmp_path / "vit.pth")
    with pytest.raises(UserError, match=words) as caught:
        jepakit.load(tmp_path / "vit.pth", heads=HEADS)
    assert "\n" not in str(caught.value) and next(iter(FOREIGN[words])) in str(caught.value)


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    state = timm_state()
    bad: dict[str, tuple[Any, str]] = {
        "missing": ({n: v for n, v in state.items() if "norm1" not in n}, r"norm1\.weight, blocks\.0\.norm1\.bias.*are missing"),
        "many missing": ({n: v for n, v in state.items() if "mlp" not in n and "proj.b" not in n}, "and 5 others are missing"),
        "gated": ({n: v[:, :16] if "fc2.w" in n else v for n, v in state.items()}, "gated MLP"),
        "gap": ({n.replace("blocks.1", "blocks.7"): v for n, v in state.items()}, "numbered from 0 on"),
        "no positions": ({n: v for n, v in state.items() if n != "pos_embed"}, "no pos_embed"),
        "odd positions": (state | {"pos_embed": torch.zeros(1, 15, WIDTH)}, "15 positions are no square grid"),
        "not finite": (state | {"norm.bias": torch.full((WIDTH,), torch.nan)}, "not finite"),
        "integers": (state | {"norm.bias": torch.zeros(WIDTH, dtype=torch.int64)}, "real floats"),
        "complex": (state | {"blocks.0.ls1.gamma": torch.ones(WIDTH, dtype=torch.complex64)}, "real floats"),
        "shape": (state | {"norm.bias": torch.zeros(3)}, "do not fit"),
        "long patches": (state | {"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 4, 8)}, "square patches"),
        "a list": ([state], "no weights by name"),
        "no ViT": ({"conv1.weight": torch.zeros(3)}, r"no ViT.*conv1\.weight"),
        "transformers": ({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(3)}, "give the folder"),
        "three": ({f"{n}.{k}": v for n in "abc" for k, v in state.items()}, r"3 encoders \(a\., b\., c\.\)"),
    }
    for name, (content, words) in bad.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(UserError, match=words) as caught:
            jepakit.load(path, heads=HEADS)
        assert "\n" not in str(caught.value) and path.name in str(caught.value), name
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"width 16 is none of the standard ones.*give heads="):
        jepakit.load(tmp_path / "vit.pth")
    with pytest.raises(UserError, match="not a multiple of heads 5"):
        jepakit.load(tmp_path / "vit.pth", heads=5)


@pytest.mark.parametrize("name", ["vit.pth", "vit.pt", "vit.safetensors", "vit.pth.tar"])
def test_files_that_are_cut_or_run_code_are_refused_and_nothing_runs(name: str, tmp_path: Path) -> None:
    state, path = timm_state(), tmp_path / name
    torch.save(state | {"extra": Bomb(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match=r"never run|safetensors"):
        jepakit.load(path, heads=HEADS)
    assert not (tmp_path / "ran").exists()
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    whole = path.read_bytes()
    for cut in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError) as caught:
            jepakit.load(path, heads=HEADS)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_released_with_learnt_positions_goes_out_and_comes_back(tmp_path: Path) -> None:
    method = Method.model_validate(
        {
            "encoder": {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "patch_size": PATCH, "learned_positions": True},
            "predictor": {"width": 8, "depth": 1},
        }
    )
    jepa = JEPA(method, (SIDE, SIDE))
    for p in jepa.parameters():
        p.data += torch.randn_like(p)
    save_released(jepa, tmp_path / "jepa.pth.tar")
    back = JEPA.from_checkpoint(tmp_path / "jepa.pth.tar", heads=HEADS)
    ours, theirs = jepa.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
