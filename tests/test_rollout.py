"""Attention rollout: the same numbers as the explicit product of attention maps, and nothing left behind."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import timm
import torch
from scipy.stats import spearmanr
from torch.utils._python_dispatch import TorchDispatchMode

from samsg.method import rollout
from samsg.method.deit import SpectrogramDeiT
from samsg.method.rollout import attention_maps, attention_rollout, rollout_row
from samsg.settings import SamsgError


def focused(depth: int = 3, n_frames: int = 101, seed: int = 0) -> SpectrogramDeiT:
    """A model that attends to some tokens far more than to others: with fresh weights all rows are nearly flat."""
    torch.manual_seed(seed)
    model = SpectrogramDeiT(n_classes=7, size="tiny", depth=depth, n_frames=n_frames).eval()
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


@contextmanager
def unfused(vit: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """timm's own attention maps, (B, H, T, T) a layer: its unfused attention passes them through a dropout."""
    maps, hooks = [], []
    for block in vit.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, weights: maps.append(weights.detach())))
    try:
        yield maps
    finally:
        for block, hook in zip(vit.blocks, hooks, strict=True):
            block.attn.fused_attn = True
            hook.remove()


def explicit(maps: list[torch.Tensor], alpha: float, order: str) -> torch.Tensor:
    """Eq. 6-7 word for word, in double precision: (B, T, T)."""
    layers = [alpha * each.double().mean(1) + (1 - alpha) * torch.eye(each.shape[-1]).double() for each in maps]
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product if order == "abnar" else product @ layer
    return product


@torch.no_grad()
def maps_of(model: SpectrogramDeiT, x: torch.Tensor) -> list[torch.Tensor]:
    with unfused(model.vit) as maps:
        model.tokens(x)
    assert len(maps) == len(model.vit.blocks)
    return maps


@pytest.fixture(scope="module")
def maps(model, x) -> list[torch.Tensor]:
    return maps_of(model, x)


@pytest.mark.parametrize("order", ["abnar", "printed"])
@pytest.mark.parametrize("token", ["cls", "mean"])
@pytest.mark.parametrize("alpha", [0.9, 0.5, 1.0])
def test_the_row_is_that_of_the_explicit_product(model, x, maps, order, token, alpha):
    product = explicit(maps, alpha, order)
    expected = product[:, 0] if token == "cls" else product[:, :2].mean(1)
    row = rollout_row(model, x, alpha, order, token)
    # float32 against float64, relative to each weight; measured 3e-6.
    torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=0)
    assert expected[:, 2:].amax(1).min() > 3 * expected[:, 2:].median()  # a flat row would prove little


def test_the_papers_shape_and_depth_agree_with_the_explicit_product():
    model = focused(depth=2, n_frames=1001)
    x = torch.rand(1, 1, 128, 1001, generator=torch.Generator().manual_seed(0))
    expected = explicit(maps_of(model, x), 0.9, "abnar")[:, 0]
    heat = attention_rollout(model, x)
    assert heat.shape == (1, 12, 99)
    patches = expected[:, 2:] / expected[:, 2:].max()
    torch.testing.assert_close(heat.flatten(1).double(), patches, rtol=1e-5, atol=0)


def test_the_rollout_is_that_of_the_normalized_input(x):
    model = focused(depth=2)
    expected, plain = rollout_row(model, (x - 0.4) / 0.2), rollout_row(model, x)
    model.normalize = (0.4, 0.2)
    assert torch.equal(rollout_row(model, x), expected)
    assert not torch.allclose(expected, plain, atol=1e-4)


def test_the_two_orders_differ(model, x):
    abnar, printed = (rollout_row(model, x, order=order) for order in ("abnar", "printed"))
    assert (abnar - printed).abs().max() > 1e-3


def test_layers_are_the_last_ones(model, x, maps):
    expected = explicit(maps[-2:], 0.9, "abnar")[:, 0]
    torch.testing.assert_close(rollout_row(model, x, layers=2).double(), expected, rtol=1e-5, atol=0)
    raw = attention_rollout(model, x, alpha=1, layers=1)
    last = maps[-1].mean(1)[:, 0, 2:]
    torch.testing.assert_close(raw.flatten(1), last / last.amax(1, keepdim=True), rtol=1e-5, atol=0)


def test_attention_maps_are_timms_own(model, x, maps):
    for found, expected in zip(attention_maps(model, x), maps, strict=True):
        torch.testing.assert_close(found, expected.mean(1), rtol=1e-5, atol=0)
        assert not found.requires_grad


@pytest.mark.parametrize("order", ["abnar", "printed"])
@pytest.mark.parametrize("token", ["cls", "mean"])
def test_a_row_sums_to_1_and_has_nothing_below_0(model, x, order, token):
    row = rollout_row(model, x, order=order, token=token)
    assert row.shape == (3, 2 + 12 * 9)
    assert row.min() >= 0
    torch.testing.assert_close(row.sum(1), torch.ones(3), rtol=0, atol=1e-5)  # 110 float32 numbers, 3 layers


def test_with_alpha_0_a_token_has_only_itself(model, x):
    row = rollout_row(model, x, alpha=0)
    assert row[:, 0].tolist() == [1, 1, 1]
    assert row[:, 1:].count_nonzero() == 0
    mean = rollout_row(model, x, alpha=0, token="mean")
    assert mean[:, :2].tolist() == [[0.5, 0.5]] * 3
    assert mean[:, 2:].count_nonzero() == 0


def test_heat_that_reaches_no_patch_is_0_and_not_undefined(model, x):
    assert attention_rollout(model, x, alpha=0).tolist() == [[[0.0] * 9] * 12] * 3


def test_the_largest_heat_is_exactly_1_in_every_clip(model, x):
    heat = attention_rollout(model, x)
    assert heat.shape == (3, 12, 9)
    assert heat.amax((1, 2)).tolist() == [1.0, 1.0, 1.0]
    row = rollout_row(model, x)[:, 2:]
    assert torch.equal(heat.flatten(1).argmax(1), row.argmax(1))
    torch.testing.assert_close(heat.flatten(1) * row.amax(1, keepdim=True), row, rtol=1e-6, atol=0)


def test_clips_are_rolled_out_each_by_itself(model, x):
    turned = torch.tensor([2, 0, 1])
    # Larger matrix products may sum in another order.
    torch.testing.assert_close(rollout_row(model, x[turned]), rollout_row(model, x)[turned], rtol=1e-5, atol=0)
    torch.testing.assert_close(rollout_row(model, x[1:2]), rollout_row(model, x)[1:2], rtol=1e-5, atol=0)


def test_bfloat16_ranks_the_patches_as_float32_does(model, x):
    exact = attention_rollout(model, x).flatten(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention_rollout(model, x).flatten(1)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert exact.amin(1).max() < 0.2  # not flat: ranks mean something
    for one, other in zip(exact, rounded, strict=True):
        assert spearmanr(one, other).statistic > 0.999


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}),  # registers, layer scale
        ("eva02_tiny_patch14_224", {"patch_size": 16}),  # rotary position embedding
        ("beit_base_patch16_224", {}),  # relative position bias: no fused normaliser to be had
        ("vit_base_patch16_rope_reg1_gap_256", {}),
    ],
)
def test_every_kind_of_vit_is_rolled_out_as_its_own_maps_say(name, options):
    torch.manual_seed(0)
    vit = timm.create_model(name, pretrained=False, depth=2, img_size=64, **options).eval()
    with torch.no_grad():
        for block in vit.blocks:  # away from flat attention, and from biases of 0
            for parameter in block.attn.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), unfused(vit) as maps:
        vit.forward_features(image)
    row = rollout_row(vit, image)
    assert row.shape == (2, vit.num_prefix_tokens + 16)
    assert row.std() > 1e-3
    assert not row.requires_grad
    # Single precision, rounded in another order; weights are of order 0.1.
    torch.testing.assert_close(row.double(), explicit(maps, 0.9, "abnar")[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 10_000, 2**26])
def test_slices_give_what_fused_attention_gives(model, x, monkeypatch, size):
    expected = rollout_row(model, x)
    monkeypatch.setattr(
        rollout._KeepNormalizers, "__torch_function__", lambda _, f, t, a=(), n=None: f(*a, **(n or {}))
    )
    monkeypatch.setattr(rollout, "SLICE", size)
    calls = []
    monkeypatch.setattr(
        rollout._Scores, "softmax", lambda self, q, its=rollout._Scores.softmax: calls.append(q) or its(self, q)
    )
    torch.testing.assert_close(rollout_row(model, x), expected, rtol=1e-4, atol=0)
    # The last layer has one row that counts, CLS; the others are sliced.
    assert calls[0] == slice(0, 1)
    # 4 bytes x 3 clips x 3 heads x 110 keys are 3960 bytes a query: 2 of them in 10 000.
    assert len(calls) == {1: 1 + 110 + 110, 10_000: 1 + 55 + 55, 2**26: 3}[size]


def test_users_hooks_are_called_by_the_forward_pass_alone(model, x):
    called = []
    hook = model.vit.blocks[0].attn.register_forward_pre_hook(lambda *_: called.append(1))
    rollout_row(model, x)
    hook.remove()
    assert called == [1]


def test_tokens_that_a_model_lacks_are_named(x):
    averaged = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, class_token=False, global_pool="avg")
    with pytest.raises(SamsgError, match="Rollout is that of a CLS token"):
        rollout_row(averaged, torch.rand(1, 3, 64, 64))
    plain = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64)
    with pytest.raises(SamsgError, match="no second token"):
        rollout_row(plain, torch.rand(1, 3, 64, 64), token="mean")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(x, training):
    model = focused(depth=2).train(training)
    model.vit.blocks[0].eval()  # a part may have a mode of its own: a frozen backbone below a head that is trained
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    row = rollout_row(model, x)
    assert not row.requires_grad
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(block.attn.fused_attn for block in model.vit.blocks)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_nothing_is_left_behind_by_an_input_that_does_not_fit(model):
    with pytest.raises((AssertionError, RuntimeError)):
        rollout_row(model, torch.rand(1, 1, 128, 50))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_has_no_part_in_it(x):
    model = focused(depth=2)
    expected = rollout_row(model, x)
    for block in model.vit.blocks:
        block.attn.attn_drop.p = block.attn.proj_drop.p = 0.5
    assert torch.equal(rollout_row(model.train(), x), expected)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return result


def test_no_map_of_tokens_by_tokens_is_ever_held():
    model, x = focused(depth=2, n_frames=1001), torch.rand(1, 1, 128, 1001)
    with LargestTensor() as largest:
        rollout_row(model, x)
    assert 0 < largest.numbers < 1190 * 1190


@pytest.mark.parametrize("other", [lambda: timm.create_model("resnet18"), lambda: torch.nn.Linear(3, 3)])
def test_a_model_without_attention_is_refused_by_name(other):
    other = other()
    with pytest.raises(SamsgError, match=rf"needs a ViT whose blocks have an attn.*got {type(other).__name__}"):
        rollout_row(other, torch.rand(1, 3, 64, 64))


class Masked(torch.nn.Module):
    """A block's attention that hands a mask over, by position, as no attention of timm's does."""

    def __init__(self, its: torch.nn.Module, mask: torch.Tensor | None) -> None:
        super().__init__()
        self.its, self.mask = its, mask

    def forward(self, x: torch.Tensor, **_) -> torch.Tensor:
        heads = (3, self.its.num_heads, self.its.head_dim)
        q, k, v = self.its.qkv(x).unflatten(2, heads).permute(2, 0, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, self.mask)
        return self.its.proj(out.transpose(1, 2).flatten(2))


def test_attention_goes_where_a_mask_lets_it_be_it_boolean_or_added(x):
    may = torch.rand(110, 110, generator=torch.Generator().manual_seed(1)) > 0.3
    may[:, :2], may[:, -1] = True, False  # all see CLS, and the last token is seen by none
    added = torch.zeros(110, 110).masked_fill(~may, -torch.inf)
    rows = {}
    for name, mask in {"none": None, "boolean": may, "added": added}.items():
        model = focused(depth=2)
        for block in model.vit.blocks:
            block.attn = Masked(block.attn, mask)
        rows[name] = rollout_row(model, x)
    torch.testing.assert_close(rows["none"], rollout_row(focused(depth=2), x), rtol=1e-5, atol=0)
    torch.testing.assert_close(rows["boolean"], rows["added"], rtol=1e-5, atol=0)
    torch.testing.assert_close(rows["boolean"].sum(1), torch.ones(3), rtol=0, atol=1e-5)
    assert rows["boolean"][:, -1].tolist() == [0, 0, 0]
    assert rows["none"][:, -1].min() > 0


class Mixed(torch.nn.Module):
    """What stands in attention's place without attending."""

    def forward(self, x: torch.Tensor, **_) -> torch.Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


def test_a_layer_that_does_not_attend_is_refused_by_name(x):
    model = focused(depth=2)
    model.vit.blocks[1].attn = Mixed()
    with pytest.raises(SamsgError, match=r"needs attention by F\.scaled_dot_product_attention; Mixed has none"):
        rollout_row(model, x)
