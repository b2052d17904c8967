"""Pictures of an encoder: attention, colours and likeness of patches, masks' coverage, the map; against explicit computations."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import jepakit
from jepakit import pictures
from jepakit.core.errors import UserError
from jepakit.model.conditioning import PositionConditioning
from jepakit.model.encoder import Encoder
from jepakit.model.images import ImageSettings
from jepakit.model.masking.masks import MultiBlock, Quadrants, RandomPatches
from jepakit.model.vit import Attention, ViT, ViTConfig
from jepakit.pictures.embedding_map import embedding_map
from jepakit.pictures.patch_similarity import short_tokens

GRID, HEADS = (4, 5), 4


def make_encoder(conditioned: bool) -> Encoder:
    torch.manual_seed(0)
    vit = ViT(ViTConfig(patch_size=4, width=32, depth=3, heads=HEADS), GRID)
    for block in vit.blocks:
        block.attn.qkv.weight.data.normal_(0, 0.3)  # fresh weights attend to all alike
    conditioning = PositionConditioning(infer_kernel=2, infer_stride=2) if conditioned else None
    return Encoder(vit, ImageSettings(size=(16, 20)), conditioning).eval()


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 16, 20, generator=torch.Generator().manual_seed(1))


class Seen:
    """What a block's attention was given and gave, and the length of a sequence."""

    def __init__(self, encoder: Encoder, x: Tensor, block: int) -> None:
        attn = encoder.vit.blocks[block].attn
        assert isinstance(attn, Attention)
        handle = attn.register_forward_hook(lambda _, given, gave: setattr(self, "pair", (given[0], gave)))
        with torch.no_grad():
            encoder(x)
        handle.remove()
        self.attn, rows = attn, 4 * 5 + (0 if encoder.conditioning is None else 4)
        self.given, self.gave = (part[: len(x) * rows].float().view(len(x), rows, -1) for part in self.pair)


@pytest.mark.parametrize("backend", ["math", "flash", "bf16"])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("block", [0, 2])
def test_attention_is_the_softmax_that_every_backend_applies(backend: str, conditioned: bool, block: int) -> None:
    encoder, x = make_encoder(conditioned), images()
    kernel = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "bf16": SDPBackend.MATH}[backend]
    half = torch.autocast("cpu", torch.bfloat16, enabled=backend == "bf16")
    with sdpa_kernel(kernel), half:  # on a CPU bf16 takes the three plain products
        found, seen = pictures.attention(encoder, x, block), Seen(encoder, x, block)
    exact = Seen(encoder, x, block)
    q, k, v = (
        (exact.given @ w.T + b).unflatten(2, (HEADS, -1)).transpose(1, 2).double()
        for w, b in zip(exact.attn.qkv.weight.chunk(3), exact.attn.qkv.bias.chunk(3), strict=True)
    )
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(32 / HEADS)
    explicit = scores.exp() / scores.exp().sum(-1, keepdim=True)
    weights = torch.from_numpy(found.weights)
    assert weights.std() > 0.01  # they are not all alike
    torch.testing.assert_close(weights, explicit.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-6, rtol=0)
    mixed = (weights.double() @ v).transpose(1, 2).flatten(2).float() @ exact.attn.proj.weight.T + exact.attn.proj.bias
    torch.testing.assert_close(
        mixed, seen.gave, **({"atol": 0.15, "rtol": 0.05} if backend == "bf16" else {"atol": 1e-5, "rtol": 0})
    )


def test_received_attention_and_that_to_conditioning_tokens_are_all_there_is() -> None:
    plain, told = (pictures.attention(make_encoder(c), images()) for c in (False, True))
    assert plain.conditioning is None and told.conditioning is not None
    np.testing.assert_allclose(plain.received.sum((2, 3)), 1, atol=1e-5)
    assert told.received.shape == told.conditioning.shape == (3, HEADS, *GRID)
    np.testing.assert_allclose(told.received.sum((2, 3)) + told.conditioning.mean((2, 3)), 1, atol=1e-5)
    one = told.of_patch(1, 7)
    assert one.shape == (HEADS, *GRID)
    np.testing.assert_allclose(one[2, 3, 4], told.weights[1, 2, 7, 3 * 5 + 4])
    assert told.figure().axes
    with pytest.raises(UserError, match="3 blocks"):
        pictures.attention(make_encoder(False), images(), 3)


def test_colours_are_principal_components_of_all_images_together() -> None:
    encoder, x = make_encoder(False), images()
    found = pictures.pca(encoder, x)
    with torch.no_grad():
        tokens = encoder(x).flatten(0, 1).double().numpy()
    judge = PCA(3, svd_solver="full").fit(tokens)
    signs = np.sign((found.basis * judge.components_).sum(1))
    np.testing.assert_allclose(found.basis, judge.components_ * signs[:, None], atol=1e-5)
    np.testing.assert_allclose(found.explained, judge.explained_variance_ratio_, atol=1e-6)
    np.testing.assert_allclose(found.scores.reshape(-1, 3), judge.transform(tokens) * signs, atol=1e-4)
    assert (found.basis[np.arange(3), np.abs(found.basis).argmax(1)] > 0).all()  # so that no sign hangs on chance
    again = pictures.pca(encoder, x.flip(0))  # one basis and one stretch, whatever the order
    np.testing.assert_allclose(again.colours[::-1], found.colours, atol=1e-4)
    assert found.colours.min() == 0 and found.colours.max() == 1 and found.figure().axes
    encoder.vit.norm.bias.data[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        pictures.pca(encoder, x)


def test_a_patch_is_like_itself_and_cosines_are_those_of_tokens() -> None:
    encoder, x = make_encoder(True), images()
    found = pictures.similarity(encoder, x, 1, (2, 3))
    assert found.patch == 13 and found.cosines.shape == (3, *GRID)
    assert found.cosines[1, 2, 3] == pytest.approx(1, abs=1e-6) and found.cosines.max() == found.cosines[1, 2, 3]
    with torch.no_grad():
        tokens = encoder(x)
    cosine = torch.nn.functional.cosine_similarity(tokens[1, 13], tokens[2, 6], dim=0)
    assert found.cosines[2, 1, 1] == pytest.approx(float(cosine), abs=1e-6)
    assert found.figure().axes
    for image, patch, what in ((3, 0, "images"), (0, 20, "rows"), (0, (0, 5), "rows"), (0, -1, "rows")):
        with pytest.raises(UserError, match=what):
            pictures.similarity(encoder, x, image, patch)


def test_short_tokens_keep_cosines_within_the_error_they_state() -> None:
    with torch.no_grad():
        tokens = make_encoder(False)(images())
    short, error = short_tokens(tokens, 20)
    units, back = (torch.nn.functional.normalize(t.flatten(0, 1).double(), dim=1) for t in (tokens, torch.from_numpy(short)))
    apart = (units @ units.T - back @ back.T).abs()
    assert short.dtype == np.int8 and short.shape == (3, 20, 20)
    assert float(apart.max()) <= error + 1e-9 and error < 0.1
    assert float(apart.diagonal().max()) < 1e-9
    assert short_tokens(tokens, 3)[1] > error  # fewer components, a larger error: it is measured, not assumed


def test_coverage_counts_what_laws_draw() -> None:
    found = pictures.coverage(RandomPatches(target_ratio=0.5), (4, 4), draws=4096)
    np.testing.assert_allclose(found.targets, 0.5, atol=0.03)
    np.testing.assert_allclose(found.context + found.targets, 1, atol=1e-6)  # what is not target is context
    quarters = pictures.coverage(Quadrants(), (4, 4), draws=4096)
    np.testing.assert_allclose(quarters.context, 0.25, atol=0.03)
    np.testing.assert_allclose(quarters.targets, 0.75, atol=0.03)
    law = MultiBlock(min_keep=4)
    blocks = pictures.coverage(law, (8, 8))
    assert blocks.released is not None and blocks.figure().axes
    assert blocks.released.targets[-1].max() == blocks.released.targets[:, -1].max() == 0  # the released law never gets there
    assert blocks.targets[-1].min() > 0 and blocks.targets[:, -1].min() > 0
    np.testing.assert_allclose(blocks.targets, blocks.targets[::-1, ::-1], atol=0.05)  # by symmetry of the grid
    assert pictures.coverage(law.model_copy(update={"compat": "released"}), (8, 8)).released is None
    small = pictures.coverage(MultiBlock(min_keep=1), (4, 4))
    assert small.released is not None or small.why


def test_a_map_keeps_groups_apart_and_finds_the_nearest() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 20)
    vectors = rng.normal(size=(3, 16))[group] + 0.05 * rng.normal(size=(60, 16))
    found = embedding_map(vectors, clusters=3, k=4)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(60)
    np.testing.assert_array_equal(found.nearest[:, 0], cosines.argmax(1))
    assert (group[found.nearest] == group[:, None]).all() and (np.diff(found.cosines, axis=1) <= 0).all()
    assert len({(g, c) for g, c in zip(group, found.clusters, strict=True)}) == 3  # k-means finds the three
    for points in (found.pca, found.tsne):
        assert points is not None
        far = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(60)
        assert (group[far.argmin(1)] == group).all()
    judge = PCA(2).fit(unit)
    np.testing.assert_allclose(np.abs(found.pca), np.abs(judge.transform(unit)), atol=1e-5)
    assert found.figure().axes and embedding_map(vectors[:4]).tsne is None
    same = embedding_map(np.ones((6, 4)))  # a collapsed encoder has one point
    assert np.ptp(same.pca) == 0 and same.tsne is None and set(same.clusters) == {0}
    with pytest.raises(UserError, match="not finite"):
        embedding_map(np.full((6, 4), np.nan))


def test_images_may_be_all_that_embed_takes() -> None:
    encoder = make_encoder(False)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 20, 3), np.uint8)
    found = pictures.similarity(encoder, pixels)
    np.testing.assert_array_equal(found.images, pixels)  # shown as they were
    given = encoder.normalise(pixels.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(pictures.similarity(encoder, given).cosines, found.cosines, atol=1e-6)
    with pytest.raises(UserError, match="at least one"):
        pictures.attention(encoder, [])
    assert jepakit.pictures is pictures
