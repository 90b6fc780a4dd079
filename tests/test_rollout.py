"""Attention rollout: each reading against an explicit computation, and nothing left behind in the model."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from timm.models import VisionTransformer

from samsg import rollout
from samsg.model import SpectrogramDeiT
from samsg.rollout import READINGS, attention_maps, attention_rollout, discard_lowest, rollout_row
from samsg.settings import SamsgError


def focused(depth: int = 3) -> SpectrogramDeiT:
    """A model that attends to some tokens far more than to others; with fresh weights all rows are nearly uniform."""
    torch.manual_seed(0)
    model = SpectrogramDeiT(n_classes=7, size="tiny", depth=depth, n_frames=101, normalize=(0.1, 1.2)).eval()
    with torch.no_grad():
        model.vit.pos_embed.mul_(10)
        for block in model.vit.blocks:
            block.attn.qkv.weight.mul_(6)
    return model


@pytest.fixture(scope="module")
def model() -> SpectrogramDeiT:
    return focused()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(3, 1, 128, 101, generator=torch.Generator().manual_seed(0))


def timms_maps(vit: torch.nn.Module, work: Callable[[], object]) -> list[torch.Tensor]:
    """timm's own attention maps, (B, H, T, T) a layer: its unfused attention passes them through a dropout."""
    maps, hooks = [], []
    for block in vit.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, weights: maps.append(weights)))
    with torch.no_grad():
        work()
    for block, hook in zip(vit.blocks, hooks, strict=True):
        block.attn.fused_attn = True
        hook.remove()
    return maps


@pytest.fixture(scope="module")
def maps(model, x) -> list[torch.Tensor]:
    return timms_maps(model.vit, lambda: model.tokens(x))


def vit_explain_layer(attention: np.ndarray, ratio: float) -> np.ndarray:
    """One layer as jacobgil/vit-explain's vit_rollout.py describes it, for one clip: (T, T) -> (T, T)."""
    flat = attention.ravel().copy()
    lowest = np.argsort(flat, kind="stable")[: int(len(flat) * ratio)]
    flat[lowest[lowest != 0]] = 0  # "don't drop the class token": entry 0 stays
    layer = (flat.reshape(attention.shape) + np.eye(len(attention))) / 2
    return layer / layer.sum(1, keepdims=True)


def explicit(maps: list[torch.Tensor], reading: str, alpha: float = 0.9, ratio: float = 0.9) -> torch.Tensor:
    """Eq. 6-7 word for word, in double precision: (B, T, T)."""
    means = [attention.double().mean(1) for attention in maps]
    if reading == "discard":
        layers = [torch.tensor(np.stack([vit_explain_layer(clip, ratio) for clip in mean.numpy()])) for mean in means]
    else:
        layers = [alpha * mean + (1 - alpha) * torch.eye(mean.shape[-1]).double() for mean in means]
    product = layers[0]
    for layer in layers[1:]:
        product = product @ layer if reading == "as_printed" else layer @ product
    return product


def assert_close(row: torch.Tensor, expected: torch.Tensor) -> None:
    """float32 against float64, relative to the largest entry; the limit is 1e-4, measured 1e-6."""
    torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-5 * float(expected.max()))


CASES = [(reading, 0.9, 0.9) for reading in READINGS] + [("output_to_input", 0.5, 0.9), ("discard", 0.9, 0.0)]


@pytest.mark.parametrize("token", ["cls", "mean", "one of each clip"])
@pytest.mark.parametrize(("reading", "alpha", "ratio"), CASES)
def test_the_row_is_that_of_the_explicit_product(model, x, maps, reading, alpha, ratio, token):
    product = explicit(maps, reading, alpha, ratio)
    expected = product[:, 0] if token == "cls" else product[:, :2].mean(1)
    if token == "one of each clip":
        token = torch.tensor([0, 1, 2])
        expected = product[range(3), token]
    assert_close(rollout_row(model, x, alpha, reading, token, ratio), expected)
    assert expected[:, 2:].amax(1).min() > 3 * expected[:, 2:].median()  # a uniform row would prove little
    if (token, alpha, ratio) == ("cls", 0.9, 0.9):  # the defaults are the paper's
        assert_close(rollout_row(model, x, reading=reading), expected)


def test_discarding_drops_the_lowest_share_and_keeps_the_first_entry():
    attention = torch.tensor([[[0.1, 0.5, 0.4], [0.2, 0.7, 0.15], [0.3, 0.6, 0.05]]])
    kept = discard_lowest(torch.cat([attention, 1 - attention]), 0.5)  # 4 of 9 entries, rounded down
    assert kept[0].tolist() == torch.tensor([[0.1, 0.5, 0.4], [0, 0.7, 0], [0.3, 0.6, 0]]).tolist()
    assert (kept[1] == 0).tolist() == [[False, True, True], [False, True, False], [False, True, False]]
    assert torch.equal(discard_lowest(attention, 0.0), attention)
    uniform = discard_lowest(torch.full((1, 10, 10), 0.1), 0.9)
    assert uniform[0, 0, 0] > 0 and int((uniform > 0).sum()) in (10, 11)  # of equal entries never all are dropped


@pytest.mark.parametrize(("token", "target"), [("cls", None), ("mean", [6, 0, 3])])
def test_the_gradient_reading_equals_autograd_written_out(model, x, token, target):
    """Chefer et al. (2021), Eq. 5-6: R = (I + positive mean of A * gradient) R, of the logit of a class."""
    vit, attention = model.vit, []
    tokens = vit.pos_drop(vit._pos_embed(vit.patch_embed((x - 0.1) / 1.2)))  # (3, 110, 192)
    for block in vit.blocks:
        q, k, v = block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, 3, 64)).permute(2, 0, 3, 1, 4)  # (3, 3, 110, 64)
        attention.append((q @ k.transpose(2, 3) / 8).softmax(3))  # (3, 3, 110, 110)
        tokens = tokens + block.attn.proj((attention[-1] @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.norm2(tokens))
    logits = model.emotion_head(model.pool(vit.norm(tokens)))  # (3, 7)
    expected = torch.eye(110).expand(3, -1, -1)
    classes = logits.argmax(1) if target is None else torch.tensor(target)
    gradients = torch.autograd.grad(logits[range(3), classes].sum(), attention)
    for weights, gradient in zip(attention, gradients, strict=True):
        expected = expected + (weights * gradient).clamp(min=0).mean(1) @ expected
    row = expected[:, 0] if token == "cls" else expected[:, :2].mean(1)
    found = rollout_row(model, x, reading="gradient", token=token, target=None if target is None else classes)
    assert_close(found, (row / row.sum(1, keepdim=True)).detach().double())
    assert model.vit.blocks[0].attn.fused_attn and not model.vit.blocks[0].attn.attn_drop._forward_hooks


def test_attention_maps_are_timms_own_and_the_last_layer_is_the_last_of_them(model, x, maps):
    for found, expected in zip(attention_maps(model, x), maps, strict=True):
        torch.testing.assert_close(found, expected.mean(1), rtol=1e-5, atol=0)
    last = maps[-1].mean(1)[:, 0]
    torch.testing.assert_close(rollout_row(model, x, reading="last_layer"), last, rtol=1e-5, atol=0)


def test_other_vits_with_standard_attention_are_rolled_out_as_well():
    torch.manual_seed(0)
    options = {"depth": 2, "img_size": 64, "patch_size": 16, "qk_norm": True, "qkv_bias": False}
    vit = timm.create_model("vit_small_patch14_reg4_dinov2", **options).eval()  # registers, layer scale
    with torch.no_grad():
        for block in vit.blocks:  # away from uniform attention, and from biases of 0
            for parameter in block.attn.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = timms_maps(vit, lambda: vit.forward_features(image))
    row = rollout_row(vit, image)
    assert row.std() > 1e-3 and not row.requires_grad
    assert_close(row, explicit(maps, "output_to_input")[:, 0])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.0, 0.1, 1.0, 10.0, 300.0]),
    st.floats(0, 1),
    st.sampled_from(READINGS),
    st.integers(1, 3),
)
def test_a_row_of_the_rollout_is_a_distribution(seed, depth, heads, sharpness, alpha, reading, clips) -> None:
    torch.manual_seed(seed)
    shape = {"img_size": (8, 12), "patch_size": 4, "in_chans": 1, "embed_dim": 16, "num_classes": 0}
    vit = VisionTransformer(**shape, depth=depth, num_heads=heads, reg_tokens=1).eval()
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight.mul_(sharpness)
    row = rollout_row(vit, torch.randn(clips, 1, 8, 12), alpha, reading, discard_ratio=alpha)
    assert row.shape == (clips, 2 + 6) and row.min() >= 0
    # 8 float32 numbers, 4 layers; scores in the thousands are rounded to 0.0001, and weights are their exponentials.
    torch.testing.assert_close(row.sum(1), torch.ones(clips), rtol=0, atol=1e-5 * max(1, sharpness))


def test_with_alpha_0_a_token_has_only_itself(model, x):
    row = rollout_row(model, x, alpha=0)
    assert row[:, 0].tolist() == [1, 1, 1] and row[:, 1:].count_nonzero() == 0
    assert rollout_row(model, x, alpha=0, token="mean")[:, :2].tolist() == [[0.5, 0.5]] * 3
    assert attention_rollout(model, x, alpha=0).tolist() == [[[0.0] * 9] * 12] * 3  # not 0 / 0


@pytest.mark.parametrize("reading", READINGS)
def test_the_largest_heat_of_every_clip_is_1(model, x, reading):
    heat = attention_rollout(model, x, reading=reading)
    assert heat.shape == (3, 12, 9) and heat.amax((1, 2)).tolist() == [1.0, 1.0, 1.0]
    row = rollout_row(model, x, reading=reading)[:, 2:]
    torch.testing.assert_close(heat.flatten(1) * row.amax(1, keepdim=True), row, rtol=1e-6, atol=0)


def test_bfloat16_ranks_the_patches_as_float32_does(model, x):
    exact = attention_rollout(model, x).flatten(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention_rollout(model, x)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded.flatten(1), exact)
    for first, second in zip(exact, rounded.flatten(1), strict=True):
        assert spearmanr(first, second).statistic > 0.999  # measured 0.9998


@pytest.mark.parametrize(("size", "slices"), [(1, 1 + 1 + 110 + 110), (2000, 1 + 55 + 55), (2**22, 3)])
def test_slices_of_any_size_give_the_same(model, x, monkeypatch, size, slices):
    expected, maps, sizes = rollout_row(model, x), attention_maps(model, x), []
    monkeypatch.setattr(rollout, "SLICE", size)
    original = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda s, *a, **n: sizes.append(s.shape[2]) or original(s, *a, **n))
    torch.testing.assert_close(rollout_row(model, x), expected, rtol=1e-4, atol=0)
    # A query has 3 clips x 3 heads x 110 keys = 990 weights: 2 queries in 2000. The last layer needs CLS and DIST.
    assert len(sizes) == slices and sum(sizes) == 2 + 110 + 110 and not expected.requires_grad
    torch.testing.assert_close(attention_maps(model, x), maps)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(x, training):
    model = focused(depth=2).train(training)
    model.vit.blocks[0].eval()  # a part may have a mode of its own: a frozen backbone below a head that is trained
    expected = rollout_row(model, x)
    for block in model.vit.blocks:
        block.attn.attn_drop.p = block.attn.proj_drop.p = 0.5  # dropout has no part in it
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    row = rollout_row(model, x)
    assert torch.equal(row, expected) and not row.requires_grad
    with pytest.raises((AssertionError, RuntimeError)):
        rollout_row(model, torch.rand(1, 1, 128, 50))  # does not fit
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_unknown_reading_or_row_is_refused(model, x):
    with pytest.raises(SamsgError, match=r"no reading of the rollout 'as_print'; .*Did you mean 'as_printed'\?"):
        rollout_row(model, x, reading="as_print")
    with pytest.raises(SamsgError, match=r"no row of the rollout 'dist'; known: cls, mean"):
        attention_rollout(model, x, token="dist")
    with pytest.raises(SamsgError, match="needs a model with a distillation token"):
        rollout_row(timm.create_model("vit_tiny_patch16_224", depth=1), torch.rand(1, 3, 224, 224), token="mean")


OTHER_MODELS = {
    "resnet18": {},
    "eva02_tiny_patch14_224": {"patch_size": 16, "depth": 1, "img_size": 64},  # rotary positions
    "vit_tiny_patch16_224": {"depth": 1, "img_size": 64, "class_token": False, "global_pool": "avg"},
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_models_without_cls_or_standard_attention_are_refused_by_name(name):
    other = timm.create_model(name, **OTHER_MODELS[name])
    with pytest.raises(SamsgError, match=rf"a CLS token and timm's standard attention; got {type(other).__name__}"):
        rollout_row(other, torch.rand(1, 3, 64, 64))
