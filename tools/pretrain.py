"""Pretrain the embedded model: a distilled DeiT-tiny of six blocks, on nothing but synthetic speech.

    python tools/pretrain.py speak     # the synthesiser speaks random words
    python tools/pretrain.py examples  # log-mel windows, and the teacher's tokens of them
    python tools/pretrain.py train     # the student, from random weights -> embedded.safetensors
    python tools/probe.py tune --weights embedded.safetensors  # its accuracy on real speech

The teacher is the ViT-S of ``samsg weights`` after its sixth block. The student learns three things of each clip: the
teacher's tokens, the cues that the synthesiser was given, and the log-mel's statistics over time. It sees no emotion
label, no human speech, and none of the teacher's weights.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from parselmouth import PraatError
from safetensors.torch import load_file, save_file
from scipy import signal
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.functional import resample

from samsg import synthetic
from samsg.audio import LogMel
from samsg.model import IMAGENET_GREY
from samsg.settings import AudioSettings

RATE, SECONDS = 16_000, 5  # Hz and length of the spoken clips
SHARD = 250  # clips a file
TEXTS = {name: tuple(itertools.chain(*synthetic.SENTENCES[name])) for name in ("savee", "emodb", "crema_d")}
EMOTIONS = np.array(list(synthetic.EMOTIONS.values()))  # (8, 10)
WINDOWS = ((2.0, 400, 0.5), (4.0, 400, 0.3), (2.0, 200, 0.1), (4.0, 800, 0.1))  # seconds, hop, share of the examples
CUES, STATISTICS = 14, 384
TEACHER_BLOCK, DEPTH, WIDTH, GRID = 6, 6, 192, (12, 15)

NOTE = {"made_by": "tools/pretrain.py from random weights and synthetic speech; see embedded.md"}


# --- speech ---------------------------------------------------------------------------------------------------------
def draw_clip(index: int, seed: int) -> tuple[str, synthetic.Clip]:
    """Corpus and clip of an index: a speaker, 6 to 16 words, and cues between those of two emotions, with noise.

    The cues enter ``synthetic.EMOTIONS`` under the clip's own name, so that no corpus's emotions are learned.
    """
    random = np.random.default_rng([seed, index])
    name = ("savee", "emodb", "crema_d")[random.integers(3)]
    words = " ".join(TEXTS[name]).replace(",", "").replace(".", "").split()
    text = " ".join(random.choice(words, random.integers(6, 17))) + "."
    cues_a, cues_b = random.choice(EMOTIONS, 2, replace=False)
    share, noise = random.random(), 0.6 * EMOTIONS.std(0) * random.standard_normal(EMOTIONS.shape[1])
    synthetic.EMOTIONS[str(index)] = tuple(share * cues_a + (1 - share) * cues_b + noise)
    speakers = synthetic.BLUEPRINTS[name].speakers
    return name, synthetic.Clip(str(index), speakers[random.integers(len(speakers))], text, str(index))


def cues_of(name: str, clip: synthetic.Clip, seed: int) -> list[float]:
    """What a clip is spoken with: pitch, tract and rate in octaves, tilt in dB an octave, and its ten cues."""
    is_male = clip.speaker in synthetic.BLUEPRINTS[name].men
    voice = synthetic._random(seed, name, clip.speaker)
    cues = synthetic._draw_cues(name, clip, seed, synthetic._random(seed, name, clip.path))
    pitch, tract = voice.normal(112 if is_male else 200, 12), voice.normal(1.0 if is_male else 1.17, 0.03)
    rate, tilt = voice.normal(synthetic.BLUEPRINTS[name].rate, 8), voice.normal(0.0, 0.5)
    octaves = [np.log2(pitch / 150) + cues["pitch"] / 12, np.log2(tract), np.log2(rate / 180) + cues["rate"]]
    return [*octaves, tilt + cues["tilt"], *cues.values()]


def speak_shard(job: tuple[int, int, Path]) -> None:
    """Speak a shard: waveforms (clips, 80000) int16, lengths in samples, cues (clips, 14)."""
    shard, seed, folder = job
    path = folder / f"{shard:04d}.npz"
    if path.exists():
        return
    torch.set_num_threads(1)
    clips = []
    for index in range(shard * SHARD, (shard + 1) * SHARD):
        name, clip = draw_clip(index, seed)
        try:
            sound = synthetic._speak(name, clip, seed + index)  # a seed a clip: a voice a clip
        except PraatError:  # no voiced frame
            continue
        rate = synthetic.BLUEPRINTS[name].sample_rate
        sound = resample(torch.from_numpy(sound).float(), rate, RATE)[: SECONDS * RATE]
        samples = np.pad((sound.numpy() * 32767).astype(np.int16), (0, SECONDS * RATE - len(sound)))
        clips.append((samples, len(sound), np.float32(cues_of(name, clip, seed + index))))
    waveforms, lengths, cues = map(np.stack, zip(*clips, strict=True))
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, waveforms=waveforms, lengths=lengths, cues=cues)
    partial.rename(path)


def speak(folder: Path, clips: int, seed: int, jobs: int) -> None:
    """Speak clips, some processes at a time; shards that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(jobs) as pool:
        list(pool.imap(speak_shard, zip(range(clips // SHARD), itertools.repeat(seed), itertools.repeat(folder))))


# --- examples -------------------------------------------------------------------------------------------------------
def record(waveform: Tensor, seconds: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """A clip as some microphone might have it, cut or padded: (S,) -> (seconds * RATE,), and its speed in octaves.

    Speed (pitch, tract and rate at once), a room's echo, a window that may start before the clip, noise, a filter.
    """
    speed = round(100 * 2 ** random.uniform(-0.35, 0.35))
    waveform = resample(waveform, speed, 100) if speed != 100 else waveform
    length = round(seconds * RATE)
    start = round(random.uniform(-0.4 * RATE, max(0.0, len(waveform) - 0.8 * length)))
    window = waveform[max(start, 0) : start + length]
    if random.random() < 0.4:
        decay = np.exp(-6.9 * np.arange(6000) / RATE / random.uniform(0.1, 0.5))
        echo = decay * random.standard_normal(6000) * random.uniform(0.02, 0.1)
        echo[0] = 1
        window = torch.from_numpy(signal.oaconvolve(window, np.float32(echo))[: len(window)])
    if random.random() < 0.8:
        noise = np.fft.rfft(random.standard_normal(len(window)))
        noise /= np.maximum(np.arange(len(noise)), 20) ** random.uniform(0, 1)  # white to brown
        noise = torch.from_numpy(np.fft.irfft(noise, len(window)).astype(np.float32))
        window = window + noise / noise.std() * window.std() * 10 ** (-random.uniform(10, 60) / 20)
    n_before = min(max(-start, 0), length - 1)
    return functional.pad(window, (n_before, length))[:length], float(np.log2(speed / 100))


def equalize(decibels: Tensor, random: np.random.Generator) -> Tensor:
    """Add a smooth random curve over frequency, within about 10 dB: (128, frames) -> (128, frames)."""
    mel = torch.linspace(0, np.pi, decibels.shape[0])
    waves = [random.normal(0, 4 / k) * torch.cos(k * mel) for k in range(1, 5)]
    return decibels + sum(waves)[:, None]


@torch.no_grad()
def write_examples(speech: Path, folder: Path, teacher: nn.Module, take: int) -> None:
    """Examples of all shards: for each number of frames images, the teacher's tokens, cues."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(speech.glob("????.npz")):
        target = folder / f"{path.stem}_{take}.npz"
        if target.exists():
            continue
        shard, random, arrays = dict(np.load(path)), np.random.default_rng([take, int(path.stem)]), {}
        waveforms = torch.from_numpy(shard["waveforms"].astype(np.float32) / 32767)
        kinds = random.choice(len(WINDOWS), len(waveforms), p=[window[2] for window in WINDOWS])
        for kind, (seconds, hop, _) in enumerate(WINDOWS):
            mel, images, cues = LogMel(AudioSettings(seconds=seconds, hop=hop)), [], []
            for index in np.flatnonzero(kinds == kind):
                window, speed = record(waveforms[index, : shard["lengths"][index]], seconds, random)
                decibels = equalize(mel.decibels(window), random) if random.random() < 0.7 else mel.decibels(window)
                images.append((decibels - decibels.amin()) / (decibels.amax() - decibels.amin()).clamp(min=1e-6))
                cues.append(shard["cues"][index] + np.float32([speed, speed, speed] + [0] * (CUES - 3)))
            image = torch.stack(images)[:, None]
            arrays[f"images_{kind}"] = image.half().numpy()
            arrays[f"cues_{kind}"] = np.stack(cues)
            tokens = torch.cat([stream(teacher, batch) for batch in image.split(32)])
            arrays[f"tokens_{kind}"] = (
                functional.layer_norm(tokens[:, [0, *range(2, tokens.shape[1])]], [384]).half().numpy()
            )
        np.savez(target.with_suffix(".partial.npz"), **arrays)
        target.with_suffix(".partial.npz").rename(target)


# --- models ---------------------------------------------------------------------------------------------------------
def build(size: str, weights: Path | None = None) -> Any:
    """Six blocks of timm's distilled DeiT with one input channel, a stride of 10, and ``grid``, that of its positions.

    Random weights get positions of 12 x 15 patches; weights from a file keep theirs, 14 x 14.
    """
    overlay = None if weights is None else {"file": str(weights)}
    name, options = f"deit_{size}_distilled_patch16_224", {"pretrained": weights is not None, "num_classes": 0}
    vit = timm.create_model(name, in_chans=1, pretrained_cfg_overlay=overlay, **options)
    vit.blocks, vit.patch_embed.proj.stride = vit.blocks[:DEPTH], (10, 10)
    vit.grid = GRID if weights is None else (14, 14)
    vit.pos_embed = nn.Parameter(resample_abs_pos_embed(vit.pos_embed, list(vit.grid), [14, 14], num_prefix_tokens=2))
    for block in vit.blocks:
        block.attn.fused_attn = False  # for few tokens, separate steps train faster on a CPU
    return vit


@torch.no_grad()
def initialize(vit: Any) -> None:
    """Random weights with the structure that trained ones have, so that few steps are enough.

    Attention starts local, after Trockman & Kolter (mimetic initialization, ICML 2023): in each head query and key
    multiply to 0.7 (Z + I), value and projection to 0.4 (Z - I), Z random. Positions start as waves over both axes.
    """

    def factor(diagonal: float, noise: float) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(noise * torch.randn(WIDTH, WIDTH) / WIDTH**0.5 + diagonal * torch.eye(WIDTH))
        return u * s.sqrt(), s.sqrt()[:, None] * v

    for block in vit.blocks:
        attention, head = block.attn, WIDTH // block.attn.num_heads
        query, key, value = attention.qkv.weight.split(WIDTH)
        for start in range(0, WIDTH, head):
            left_factor, right_factor = factor(0.7, 0.7)
            query[start : start + head], key[start : start + head] = left_factor[:, :head].T, right_factor[:head]
        left_factor, right_factor = factor(-0.4, 0.4)
        value.copy_(left_factor.T)
        attention.proj.weight.copy_(right_factor.T)
    rows, columns = torch.meshgrid(*map(torch.arange, GRID), indexing="ij")
    speeds = 30.0 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = torch.cat([rows.reshape(-1, 1) * speeds, columns.reshape(-1, 1) * speeds], 1)
    vit.pos_embed[0, 2:] = 0.5 * torch.cat([angles.sin(), angles.cos()], 1)


def stream(vit: Any, images: Tensor, indices: Tensor | None = None) -> Tensor:
    """The residual stream after the last block: (B, 1, 128, frames) -> (B, 2 + 12 * columns, dim).

    Positions are resampled to the grid as timm does when it loads weights. With ``indices``, the patches of these
    indices (B, n) alone enter the blocks: (B, 2 + n, dim).
    """
    mean, deviation = IMAGENET_GREY
    x = vit.patch_embed.proj((images - mean) / deviation)  # (B, dim, 12, columns)
    positions = resample_abs_pos_embed(vit.pos_embed, list(x.shape[2:]), list(vit.grid), num_prefix_tokens=2)
    x = x.flatten(2).transpose(1, 2) + positions[:, 2:]
    if indices is not None:
        x = x.gather(1, indices[:, :, None].expand(-1, -1, x.shape[2]))
    prefix = torch.cat([vit.cls_token, vit.dist_token], 1) + positions[:, :2]
    return vit.blocks(torch.cat([prefix.expand(len(x), -1, -1), x], 1))


# --- training -------------------------------------------------------------------------------------------------------
def read_examples(folder: Path, limit: int | None) -> list[dict[str, Tensor]]:
    """All examples, one group for each number of frames: images, the teacher's tokens, and a summary to learn.

    The summary is the cues, the log-mel's mean, standard deviation and mean absolute difference over time, and the
    teacher's CLS and mean patch token, each number standardised: (clips, 14 + 384 + 768).
    """
    parts: dict[int, list[dict[str, Tensor]]] = {}
    for path in sorted(folder.glob("????_?.npz"))[:limit]:
        arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
        for kind in range(len(WINDOWS)):
            image, tokens = arrays[f"images_{kind}"], arrays[f"tokens_{kind}"]
            cells, targets = image[:, 0].float(), tokens.float()
            statistics = torch.cat([cells.mean(2), cells.std(2), cells.diff(dim=2).abs().mean(2)], 1)
            summary = torch.cat([arrays[f"cues_{kind}"], statistics, targets[:, 0], targets[:, 1:].mean(1)], 1)
            parts.setdefault(image.shape[3], []).append({"images": image, "tokens": tokens, "summary": summary})
    groups = [{name: torch.cat([part[name] for part in group]) for name in group[0]} for group in parts.values()]
    summaries = torch.cat([group["summary"] for group in groups])
    for group in groups:
        group["summary"] = (group["summary"] - summaries.mean(0)) / summaries.std(0).clamp(min=1e-6)
    return groups


def train(
    student: Any, groups: list[dict[str, Tensor]], epochs: int, lr: float, after_epoch: Callable[[], None]
) -> None:
    """Teach the student: smooth L1 to the teacher's patch tokens and, from (CLS + DIST) / 2, to the summary.

    Four of five batches show the student a random 30 % of the patches: that augments, and takes a third of the time.
    """
    to_tokens, to_summary = nn.Linear(WIDTH, 384), nn.Linear(WIDTH, groups[0]["summary"].shape[1])
    parameters = [*student.parameters(), *to_tokens.parameters(), *to_summary.parameters()]
    batch_sizes = [32 if group["images"].shape[3] < 100 else 16 for group in groups]
    steps = sum(-(-len(group["images"]) // size) for group, size in zip(groups, batch_sizes, strict=True))
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        losses, start = torch.zeros(4), time.time()
        minibatches = [
            (group, index)
            for group, size in zip(groups, batch_sizes, strict=True)
            for index in torch.randperm(len(group["images"])).split(size)
        ]
        for number in torch.randperm(len(minibatches)).tolist():
            group, index = minibatches[number]
            images, tokens = group["images"][index].float(), group["tokens"][index, 1:].float()
            patches = tokens.shape[1]
            share = 0.3 if torch.rand(()) < 0.8 else 1.0
            indices = torch.rand(len(index), patches).argsort(1)[:, : round(share * patches)]
            x = student.norm(stream(student, images + 0.02 * torch.randn_like(images), indices))
            tokens = tokens.gather(1, indices[:, :, None].expand(-1, -1, 384))
            imitation = functional.smooth_l1_loss(to_tokens(x[:, 2:]), tokens)
            errors = functional.smooth_l1_loss(to_summary(x[:, :2].mean(1)), group["summary"][index], reduction="none")
            cues, statistics, pooled = (part.mean() for part in errors.split([CUES, STATISTICS, 768], 1))
            (2 * imitation + cues + statistics + pooled).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses += torch.stack([imitation, cues, statistics, pooled]).detach() / steps
        numbers = " ".join(f"{loss:.3f}" for loss in losses)
        print(f"epoch {epoch + 1}: tokens, cues, statistics, pooled {numbers}; {time.time() - start:.0f} s", flush=True)
        after_epoch()


def save(student: Any, path: Path) -> None:
    """Half-precision weights, named as in timm's deit_tiny_distilled_patch16_224, without heads."""
    tensors = {name: tensor.half().contiguous() for name, tensor in student.state_dict().items()}
    save_file(tensors, path, NOTE)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["speak", "examples", "train"])
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="folder of the intermediate files")
    parser.add_argument("--clips", type=int, default=12_000, help="clips to speak")
    parser.add_argument("--jobs", type=int, default=2, help="processes that speak")
    parser.add_argument("--teacher", type=Path, default=Path("data/weights/dinov2_small.safetensors"))
    parser.add_argument("--takes", type=int, default=1, help="examples of each clip")
    parser.add_argument("--shards", type=int, help="files of examples to train on; all of them if left out")
    parser.add_argument("--start", type=Path, help="an earlier result to go on from, instead of random weights")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("embedded.safetensors"))
    options = parser.parse_args()
    if options.step == "speak":
        speak(options.work / "speech", options.clips, options.seed, options.jobs)
    elif options.step == "examples":
        teacher = build("small", options.teacher).eval()
        for take in range(options.takes):
            write_examples(options.work / "speech", options.work / "examples", teacher, take)
    else:
        torch.manual_seed(options.seed)
        groups = read_examples(options.work / "examples", options.shards)
        student = build("tiny")
        initialize(student)
        if options.start is not None:
            student.load_state_dict({name: tensor.float() for name, tensor in load_file(options.start).items()})
        train(student, groups, options.epochs, options.lr, lambda: save(student, options.out))


if __name__ == "__main__":
    main()
