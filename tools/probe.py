"""How good are weights on real speech? EmoDB's 535 clips, first 2 s, seven emotions; RAVDESS, 4 s, eight.

    python tools/probe.py svm                              # linear SVM on log-mel statistics
    python tools/probe.py frozen --weights FILE|random     # linear SVM on frozen tokens, a speaker left out
    python tools/probe.py teacher --weights FILE           # the same after blocks 4 to 12 of the ViT-S
    python tools/probe.py tune --weights FILE              # fine-tuned, five folds of two speakers

Nothing is selected on test clips: the last epoch counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional
from torchaudio.functional import resample

from samsg.audio import LogMel, make_view
from samsg.model import IMAGENET_GREY, SpectrogramDeiT
from samsg.settings import VIEWS, AudioSettings, ViewSettings


def read_clips(corpus: str, folder: Path) -> tuple[list[str], list[Tensor], np.ndarray, np.ndarray]:
    """Names, waveforms (16 kHz, of 6 s at most), labels and speakers of a corpus, from its official file names."""
    if corpus == "emodb":
        paths = sorted(folder.glob("emodb_first2s/wav/*.wav"))
        emotions, speakers = [path.stem[5] for path in paths], [path.stem[:2] for path in paths]
    else:
        paths = sorted(folder.glob("ravdess/flac/*.flac"))
        emotions, speakers = [path.stem[6:8] for path in paths], [path.stem[-2:] for path in paths]
    waveforms = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        samples = torch.from_numpy(samples[: 6 * rate])
        waveforms.append(resample(samples, rate, 16_000))
    return [path.stem for path in paths], waveforms, np.unique(emotions, return_inverse=True)[1], np.array(speakers)


def spectrograms(names: list[str], waveforms: list[Tensor], audio: AudioSettings, view: str) -> Tensor:
    """One view of all clips: (clips, 1, 128, frames)."""
    settings, mel = ViewSettings(), LogMel(audio)
    views = [make_view(waveform, name, view, audio, settings) for name, waveform in zip(names, waveforms, strict=True)]
    return torch.cat([mel(torch.stack(views[start : start + 64])) for start in range(0, len(views), 64)])


def statistics(images: Tensor) -> np.ndarray:
    """Mean, standard deviation and mean absolute difference over time of a log-mel: (clips, 384)."""
    image = images[:, 0]
    return torch.cat([image.mean(2), image.std(2), image.diff(dim=2).abs().mean(2)], 1).numpy()


@torch.no_grad()
def block_features(model: SpectrogramDeiT, images: Tensor, blocks: list[int]) -> dict[int, np.ndarray]:
    """CLS and mean of the patch tokens after some blocks, each token normalised: (clips, 2 dim) a block."""
    model.eval()
    features: dict[int, list[Tensor]] = {block: [] for block in blocks}
    vit, (mean, deviation) = model.vit, model.normalize
    for batch in images.split(64):
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed((batch - mean) / deviation))))
        for number, block in enumerate(vit.blocks[: max(blocks)], 1):
            x = block(x)
            if number in blocks:
                y = vit.norm(x) if number == len(vit.blocks) else functional.layer_norm(x, x.shape[-1:])
                features[number].append(torch.cat([y[:, 0], y[:, 2:].mean(1)], 1))
    return {block: torch.cat(batches).numpy() for block, batches in features.items()}


def leave_one_out(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Accuracy over all clips of a linear SVM; each group is tested by a model of the others."""
    n_right = 0
    for group in np.unique(groups):
        is_test = groups == group
        model = make_pipeline(StandardScaler(), LinearSVC(C=0.001, max_iter=5000))
        model.fit(features[~is_test], labels[~is_test])
        n_right += int((model.predict(features[is_test]) == labels[is_test]).sum())
    return n_right / len(labels)


def fine_tune(model: SpectrogramDeiT, views: Tensor, labels: Tensor, epochs: int, lr: float) -> float:
    """Train on (views, clips, 1, 128, frames), a random view of each clip an epoch: AdamW, one cycle, batch 8.

    Returns the last epoch's accuracy on what it trains on.
    """
    groups = [{"params": model.vit.parameters()}, {"params": model.emotion_head.parameters()}]
    optimizer, batches = torch.optim.AdamW(groups), -(-len(labels) // 8)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [lr, 2e-3], epochs * batches)
    model.train()
    for _ in range(epochs):
        n_right = 0
        for index in torch.randperm(len(labels)).split(8):
            logits = model(views[torch.randint(len(views), index.shape), index])
            functional.cross_entropy(logits, labels[index]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            n_right += int((logits.argmax(1) == labels[index]).sum())
    return n_right / len(labels)


def build(weights: str, frames: int, classes: int, size: str) -> SpectrogramDeiT:
    """The library's model with the embedded model's kind of weights (tiny), or the ViT-S (small)."""
    depth = 6 if size == "tiny" else 12
    start = "random" if size == "tiny" else weights
    model = SpectrogramDeiT(classes, size, depth, n_frames=frames, weights=start, normalize=IMAGENET_GREY)
    if size == "tiny" and weights != "random":
        state = {name: tensor.float() for name, tensor in load_file(weights).items()}
        positions = resample_abs_pos_embed(state["pos_embed"], list(model.grid), [12, 15], num_prefix_tokens=2)
        model.vit.load_state_dict({**state, "pos_embed": positions})
    for block in model.vit.blocks:
        block.attn.fused_attn = False  # for few tokens, separate steps train faster on a CPU
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["svm", "frozen", "teacher", "tune"])
    parser.add_argument("--weights", default="random")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--corpus", choices=["emodb", "ravdess"], default="emodb")
    parser.add_argument("--folds", type=int, help="of the five (emodb) or four (ravdess), how many to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--size", choices=["tiny", "small"], default="tiny")
    options = parser.parse_args()
    audio = AudioSettings(seconds=2.0 if options.corpus == "emodb" else 4.0, hop=400)
    names, waveforms, labels, speakers = read_clips(options.corpus, options.shared)
    clean_images, start_time = spectrograms(names, waveforms, audio, "clean"), time.time()
    speaker_names = np.unique(speakers)
    # EmoDB: all ten speakers alone; RAVDESS: four folds of six actors.
    groups = speakers if options.corpus == "emodb" else np.searchsorted(speaker_names, speakers) % 4
    torch.manual_seed(options.seed)
    if options.what == "svm":
        print(f"SVM on log-mel statistics: {leave_one_out(statistics(clean_images), labels, groups):.3f}")
    elif options.what == "tune":
        views = torch.stack([spectrograms(names, waveforms, audio, view) for view in VIEWS])
        clip_folds = np.searchsorted(speaker_names, speakers) // 2 if options.corpus == "emodb" else groups
        n_total, n_right, targets = 0, 0, torch.from_numpy(labels)
        for fold in np.unique(clip_folds)[: options.folds]:
            start_time, is_test = time.time(), torch.from_numpy(clip_folds == fold)
            torch.manual_seed(options.seed)
            model = build(options.weights, audio.n_frames, labels.max() + 1, options.size)
            train_accuracy = fine_tune(model, views[:, ~is_test], targets[~is_test], options.epochs, options.lr)
            model.eval()
            with torch.no_grad():
                predictions = torch.cat([model(batch).argmax(1) for batch in clean_images[is_test].split(64)])
            n_hits, n_test = int((predictions == targets[is_test]).sum()), int(is_test.sum())
            n_total, n_right = n_total + n_test, n_right + n_hits
            scores = f"test {n_hits / n_test:.3f} train {train_accuracy:.3f}"
            print(f"fold {fold}: {scores}, {time.time() - start_time:.0f} s", flush=True)
        print(f"fine-tuned: test {n_right / n_total:.3f} ({n_right} of {n_total} clips)")
    else:
        blocks, size = ([6], options.size) if options.what == "frozen" else ([4, 5, 6, 7, 8, 9, 10, 12], "small")
        model = build(options.weights, audio.n_frames, 2, size)
        for block, features in block_features(model, clean_images, blocks).items():
            print(f"frozen, block {block}: {leave_one_out(features, labels, groups):.3f}", flush=True)
    print(f"{time.time() - start_time:.0f} s")


if __name__ == "__main__":
    main()
