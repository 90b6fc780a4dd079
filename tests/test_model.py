"""The model: the paper's grid and sizes, the same numbers as AST's own code, and weights from files."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import ASTConfig, ASTModel

from samsg import model as model_module
from samsg.model import IMAGENET_GREY, SpectrogramDeiT, build_model, patch_grid, patchify
from samsg.settings import AudioSettings, ModelSettings, SamsgError


def small(**named) -> SpectrogramDeiT:
    """DeiT-tiny with two blocks on a tenth of the time: a grid of 12 x 9."""
    return SpectrogramDeiT(**{"n_classes": 7, "size": "tiny", "depth": 2, "n_frames": 101, **named}).eval()


def spectrogram(batch: int = 2, n_frames: int = 101, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 1, 128, n_frames, generator=torch.Generator().manual_seed(seed))


def test_the_grid_holds_every_whole_patch():
    assert patch_grid(128, 1001) == patch_grid(128, 1001, 16, 10) == (12, 99)  # Fig. 2
    assert [patch_grid(128, 1001, 16, 16), patch_grid(16, 16), patch_grid(25, 26)] == [(8, 62), (1, 1), (1, 2)]
    with pytest.raises(SamsgError, match=r"15 x 1001 cells holds no patch of 16 x 16; lower model\.patch"):
        patch_grid(15, 1001)


@pytest.mark.parametrize(
    ("size", "dim", "heads", "parameters"), [("tiny", 192, 3, 5e6), ("small", 384, 6, 22e6), ("base", 768, 12, 86e6)]
)
def test_sizes_are_those_of_deit_and_tokens_those_of_the_paper(size, dim, heads, parameters):
    with torch.device("meta"):  # shapes without numbers: nothing is allocated
        model = SpectrogramDeiT(n_classes=7, size=size)
        tokens = model.tokens(torch.empty(2, 1, 128, 1001))
        logits, patches = model(torch.empty(2, 1, 128, 1001), reconstruct=True)
    assert model.grid == model.vit.patch_embed.grid_size == (12, 99)
    assert model.vit.embed_dim == dim and [block.attn.num_heads for block in model.vit.blocks] == 12 * [heads]
    assert (tokens.shape, logits.shape, patches.shape) == ((2, 1190, dim), (2, 7), (2, 1188, 256))
    # Touvron et al. 2021, Table 1: 5 M, 22 M, 86 M; ours has no head of 1000 classes and more position embeddings.
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.14)


def test_each_token_sees_the_patch_that_patchify_cuts_out():
    model = small()
    x, embed = spectrogram(), model.vit.patch_embed
    by_hand = patchify(x) @ embed.proj.weight.flatten(1).T + embed.proj.bias  # (B, 108, 192)
    # Sums of 256 float32 products in another order.
    torch.testing.assert_close(embed(x), by_hand, rtol=1e-4, atol=1e-5)


def test_one_head_reads_the_mean_of_cls_and_dist_and_the_other_the_patch_tokens():
    model, x = small(), spectrogram()
    tokens = model.tokens(x)
    logits, patches = model(x, reconstruct=True)
    assert torch.equal(logits, model.emotion_head((tokens[:, 0] + tokens[:, 1]) / 2))
    assert torch.equal(logits, model(x))
    assert torch.equal(patches, model.reconstruction_head(tokens[:, 2:]))


def test_normalize_shifts_and_scales_what_comes_in():
    model, x = small(), spectrogram()
    with torch.no_grad():
        plain = model.tokens((x - 0.449) / 0.226)
        model.normalize = IMAGENET_GREY
        assert torch.equal(model.tokens(x), plain)
    # Grey has the mean of ImageNet's colours, to three digits.
    assert (sum(IMAGENET_DEFAULT_MEAN) / 3, sum(IMAGENET_DEFAULT_STD) / 3) == pytest.approx(IMAGENET_GREY, abs=5e-4)


def copied_to_ast(model: SpectrogramDeiT, n_frames: int) -> ASTModel:
    """transformers' AST with this model's weights; patches of 16, strides of 10 and 128 mel bands are its defaults."""
    vit = model.vit
    ast = ASTModel(
        ASTConfig(
            hidden_size=vit.embed_dim,
            num_hidden_layers=len(vit.blocks),
            num_attention_heads=vit.blocks[0].attn.num_heads,
            intermediate_size=4 * vit.embed_dim,
            max_length=n_frames,
            layer_norm_eps=1e-6,  # timm's; transformers' default is 1e-12
            attn_implementation="eager",
        )
    ).eval()
    state = {
        "embeddings.cls_token": vit.cls_token,
        "embeddings.distillation_token": vit.dist_token,
        "embeddings.position_embeddings": vit.pos_embed,
        "embeddings.patch_embeddings.projection.weight": vit.patch_embed.proj.weight,
        "embeddings.patch_embeddings.projection.bias": vit.patch_embed.proj.bias,
        "layernorm.weight": vit.norm.weight,
        "layernorm.bias": vit.norm.bias,
    }
    pairs = {"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj"}
    pairs |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for index, block in enumerate(vit.blocks):
        for kind in ("weight", "bias"):
            for theirs, ours in pairs.items():
                state[f"layers.{index}.{theirs}.{kind}"] = getattr(block.get_submodule(ours), kind)
            for name, part in zip("qkv", getattr(block.attn.qkv, kind).chunk(3), strict=True):
                state[f"layers.{index}.attention.{name}_proj.{kind}"] = part
    ast.load_state_dict(state, strict=True)
    return ast


@pytest.mark.parametrize(("n_frames", "depth"), [(101, 3), (1001, 1)])
def test_tokens_and_pooled_output_are_those_of_ast(n_frames, depth):
    torch.manual_seed(0)
    model = small(n_frames=n_frames, depth=depth)
    with torch.no_grad():
        # Positions, tokens and biases start near 0, where a mix-up would hardly show.
        for parameter in model.vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        ast, x = copied_to_ast(model, n_frames), spectrogram(2, n_frames)
        theirs = ast(x[:, 0].transpose(1, 2))  # AST takes (B, frames, mels)
        tokens = model.tokens(x)
    # float32 through a few layers, outputs of size 1; measured 1e-5.
    torch.testing.assert_close(tokens, theirs.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.pool(tokens), theirs.pooler_output, rtol=1e-4, atol=1e-4)
    assert tokens.std(1).mean() > 0.1  # the tokens differ: equality is not that of constants


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dictionary like that of the published ImageNet weights: three channels, 224 px, 1000 classes."""
    torch.manual_seed(1)
    model = timm.create_model("deit_tiny_distilled_patch16_224", pretrained=False)
    return {name: torch.randn_like(value) * 0.02 for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_imagenet_weights_are_adapted_to_spectrograms(tmp_path, published, kind):
    path = tmp_path / f"deit.{kind}"
    if kind == "pth":
        torch.save({"model": published}, path)  # as DeiT's authors publish them
    else:
        save_file(published, path)
    state = SpectrogramDeiT(n_classes=7, size="tiny", weights=path).vit.state_dict()
    assert state.keys() == published.keys() - {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    adapted = {"pos_embed", "patch_embed.proj.weight"}
    for name in state.keys() - adapted:
        assert torch.equal(state[name], published[name]), name
    # A grey image is an RGB image with three equal channels: the filters add up. Sums of three float32 numbers.
    filters = published["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(state["patch_embed.proj.weight"], filters, rtol=0, atol=1e-7)
    positions = published["pos_embed"]
    assert state["pos_embed"].shape == (1, 1190, 192)
    assert torch.equal(state["pos_embed"][:, :2], positions[:, :2])
    square = positions[:, 2:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    resampled = F.interpolate(square, (12, 99), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(state["pos_embed"][:, 2:], resampled.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


@pytest.fixture
def embedded(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """A file like samsg's own weights: DeiT-tiny of six blocks in half precision, positions of 12 x 15 patches."""
    torch.manual_seed(2)
    state = small(depth=6, n_frames=161).vit.state_dict()
    state = {name: (value + 0.1 * torch.randn_like(value)).half() for name, value in state.items()}
    save_file(state, tmp_path / "embedded.safetensors")
    monkeypatch.setattr(model_module, "EMBEDDED", tmp_path / "embedded.safetensors")
    return state


@pytest.mark.parametrize("depth", [1, 6])
def test_embedded_weights_give_their_first_blocks_on_any_grid(embedded, depth) -> None:
    same = small(depth=depth, n_frames=161, weights="embedded").vit.state_dict()
    assert len({name.split(".")[1] for name in same if name.startswith("blocks.")}) == depth
    assert all(torch.equal(value, embedded[name].float()) for name, value in same.items())
    # 12 x 27 = 18 x 18 patches: the grid of the file must not be taken for a square.
    positions = small(depth=depth, n_frames=281, weights="embedded").vit.pos_embed[:, 2:]
    old = embedded["pos_embed"].float()[:, 2:].reshape(1, 12, 15, 192).permute(0, 3, 1, 2)
    expected = F.interpolate(old, (12, 27), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(positions, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


def test_a_model_is_built_as_the_settings_say(embedded) -> None:
    settings = ModelSettings(size="tiny", depth=2, patch=8, stride=6, weights="random", normalize="none")
    built = build_model(settings, AudioSettings(n_mels=64, seconds=1.0, hop=100), 5)
    assert (built.patch, built.stride, built.grid) == (8, 6, patch_grid(64, 161, 8, 6))
    assert (built.vit.embed_dim, len(built.vit.blocks), built.normalize) == (192, 2, (0, 1))
    assert built(torch.rand(1, 1, 64, 161)).shape == (1, 5)
    settings, audio = ModelSettings(size="tiny", depth=1, weights="embedded"), AudioSettings(hop=400)
    built = build_model(settings, audio, 5)
    assert built.normalize == IMAGENET_GREY
    assert torch.equal(built.vit.norm.weight, embedded["norm.weight"].float())
    assert not torch.equal(build_model(settings, audio, 5, "random").vit.norm.weight, built.vit.norm.weight)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weights": "text.pth"}, r"'text\.pth' could not be loaded"),
        ({"weights": "nowhere.pth"}, r"'nowhere\.pth' could not be loaded .*: there is no file .*Set model\.weights"),
        ({"weights": "tiny.pth", "size": "small", "depth": None}, r"'tiny\.pth' could not be loaded into deit_small_"),
        ({"weights": "incomplete.pth"}, r"of \d+ blocks they lack dist_token and 0 other tensors"),
        ({"weights": "imagenet"}, r"'imagenet' could not be loaded.*Set model\.weights to 'embedded'"),
        ({"weights": "dinov2", "size": "small"}, r"no file .*dinov2_small\.safetensors\. .*\(after `samsg weights`\)"),
        ({"weights": "embedded", "depth": 7}, r"'embedded' could not be loaded.*\(size tiny, at most 6 blocks\)"),
    ],
)
def test_weights_that_are_missing_or_do_not_fit_are_refused(home, monkeypatch, published, embedded, asked, message):
    monkeypatch.chdir(home)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))  # without network, nothing to load
    Path("text.pth").write_text("this is no model")
    torch.save(published, "tiny.pth")
    torch.save({name: tensor for name, tensor in published.items() if name != "dist_token"}, "incomplete.pth")
    with pytest.raises(SamsgError, match="(?s)" + message):
        small(**asked)
