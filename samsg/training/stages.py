"""The three stages of Fig. 1 and what lies between them, each kept in a folder of its run (Section III-D).

prepare: sounds -> waveforms and spectrograms.  train_baseline: stage i, DeiT on emotions.  compute_rollout and
compute_masks: what it relies on.  train_samsg: stage ii, emotion and reconstruction from masked spectrograms.
train_probe: stage iii, the CLS token and one linear layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from samsg.audio.store import WaveformStore, write_spectrograms, write_store
from samsg.corpora.catalogue import PARTS_FILE, SPOKEN, emotions_of, read_corpus
from samsg.corpora.splits import PARTS, split
from samsg.method.deit import IMAGENET_GREY, SpectrogramDeiT
from samsg.method.masking import choose_patches
from samsg.method.rollout import attention_rollout
from samsg.runs import NOTEBOOKS, Run, atomic, finished, progress_bar, write_json
from samsg.settings import AudioSettings, ModelSettings, SamsgError, StageSettings, TrainingSettings
from samsg.training.loop import Examples, Losses, evaluate, fit, make_fabric, quicker_attention

# Distinguishes the stages' random numbers from each other under one seed.
STAGE_KEYS = {"baseline": 1, "samsg": 2, "probe": 3}


def read_manifest(run: Run) -> pd.DataFrame:
    """The corpus' manifest, after speaking it first if it is one of the embedded ones.

    Raises:
        SamsgError: the corpus is not where it should be, or incomplete.
    """
    corpus, root = run.profile.corpus(run.corpus), run.profile.root(run.corpus)
    if corpus.synthetic is not None:
        from samsg.corpora.synthetic import write_corpus

        write_corpus(run.profile.reader(run.corpus), root, corpus.synthetic)
    elif (root / SPOKEN).is_file():
        raise SamsgError(
            f"{root} holds synthetic speech, but profile '{run.profile.name}' does not say so of '{run.corpus}'; give "
            "the corpus a 'synthetic' entry as configs/demo.yaml does, or another root."
        )
    manifest = read_corpus(run.profile.reader(run.corpus), root)
    if corpus.synthetic is not None and corpus.synthetic.shortcut is not None:
        manifest = manifest.merge(pd.read_csv(root / PARTS_FILE, dtype=str), on="path", validate="one_to_one")
    return manifest


def prepare(run: Run) -> WaveformStore:
    """Read every sound of the corpus once and compute the spectrograms of all views, unless that is done.

    Sounds that cannot be used are left out and listed, with the reason, in left_out.csv. Those that are there more than
    once are said, with their emotions.

    Raises:
        SamsgError: the corpus is not where it should be, incomplete, changed since it was read, or without any sound.
    """
    root, folder = run.profile.root(run.corpus), run.stage_folder("waveforms")
    audio, views = run.profile.audio, run.profile.views
    if finished(folder, run.settings("waveforms")) and root.is_dir():
        changed = WaveformStore(folder).changed(read_manifest(run), root, audio.sample_rate)
        if changed:  # must not be mixed with results on the others
            raise SamsgError(
                f"{len(changed)} sounds in {root}, or what is said of them, are new, gone or changed since they were "
                f"read into {folder}, such as {changed[0]}. Remove {folder.parent} to start anew with them, or put "
                "them back."
            )
    store = WaveformStore(run.make("waveforms", lambda partial: write_store(read_manifest(run), root, partial, audio)))
    for twins in store.twins():
        its = store.clips.loc[twins].groupby("emotion")["path"].agg(", ".join)
        said = "; ".join(f"as {emotion}: {paths}" for emotion, paths in its.items())
        print(f"The same sound more than once, {said}")
    run.make("spectrograms", lambda partial: write_spectrograms(store, partial, audio, views))
    return store


def read_clips(run: Run) -> pd.DataFrame:
    """The clips of the run's corpus with their part: the manifest of ``prepare``, split by protocol and seed.

    Raises:
        SamsgError: the very same sound lies in two parts under one emotion.
    """
    store = WaveformStore(run.require("waveforms"))
    clips = split(store.clips, run.protocol, run.seed)
    for twins in store.twins():
        for emotion, its in clips.loc[twins].groupby("emotion"):
            if its["part"].nunique() > 1:
                places = ", ".join(f"{path} ({part})" for path, part in zip(its["path"], its["part"], strict=True))
                raise SamsgError(
                    f"What is tested would have been heard in training: {run.corpus} holds the same sound of {emotion} "
                    f"as {places}. Keep one copy of it, or split by speaker or sentence."
                )
    return clips


def read_examples(run: Run, masks: bool = False) -> Examples:
    """The run's spectrograms, labels and parts, and its masks if asked for, as the training loop takes them."""
    clips = read_clips(run)
    emotions = emotions_of(clips)
    return Examples(
        spectrograms=np.load(run.require("spectrograms") / "views.npy", mmap_mode="r"),
        labels=clips["emotion"].map(emotions.index).to_numpy(),
        parts={part: np.flatnonzero(clips["part"] == part) for part in PARTS},
        masks=np.load(run.require("masks") / "masks.npy", mmap_mode="r") if masks else None,
        names=clips["clip"].to_numpy(),
    )


def new_model(run: Run) -> SpectrogramDeiT:
    """The run's model before training; random weights depend on the seed alone."""
    torch.manual_seed(run.seed)
    profile = run.profile
    return model_of(profile.model, profile.audio, len(emotions_of(read_clips(run))), profile.weights)


def model_of(model: ModelSettings, audio: AudioSettings, n_classes: int, weights: str = "random") -> SpectrogramDeiT:
    """A model as the settings describe it. Arguments and errors as ``SpectrogramDeiT``."""
    return SpectrogramDeiT(
        n_classes=n_classes,
        size=model.size,
        depth=model.depth,
        n_mels=audio.n_mels,
        n_frames=audio.n_frames,
        patch=model.patch,
        stride=model.stride,
        weights=weights,
        normalize=IMAGENET_GREY if (model.normalize, audio.scaling) == ("imagenet", "minmax") else (0.0, 1.0),
    )


def load_model(run: Run, stage: str) -> SpectrogramDeiT:
    """The model that a stage left: of its best validation epoch.

    Args:
        stage: 'baseline', 'samsg' or 'probe'.

    Raises:
        SamsgError: the stage has not been run, or its file is damaged or of another model.
    """
    path = run.require(stage) / "model.safetensors"
    profile = run.profile.model_copy(update={"model": run.profile.model.model_copy(update={"weights": "random"})})
    model = new_model(Run(profile, run.corpus, run.protocol, run.seed))
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and PyTorch raise several kinds
        raise SamsgError(
            f"{path} does not hold the model that stage '{stage}' leaves: {error}. Remove {path.parent} and run "
            f"notebook {NOTEBOOKS[stage]}.ipynb again."
        ) from error
    return model.eval()


def train_baseline(run: Run) -> Path:
    """Stage i: DeiT on emotion labels, cross-entropy. Returns the stage's folder."""

    def work(folder: Path) -> None:
        _train(run, "baseline", folder, new_model(run), read_examples(run), run.profile.training)

    return run.make("baseline", work, together=True)


def compute_rollout(run: Run) -> Path:
    """The rollout of stage i's model on every view of the training clips and the clean view of the others.

    Leaves heat.npy, float32 (V, N, 12, 99), NaN where nothing was computed. All in single precision: where attention is
    nearly even, coarser rounding would decide which patches are important. Returns the stage's folder.
    """

    def work(folder: Path) -> None:
        examples, model = read_examples(run), load_model(run, "baseline")
        rollout, training = run.profile.rollout, run.profile.training
        fabric = make_fabric(training)
        fabric.to_device(model)
        shape = (*examples.spectrograms.shape[:2], *model.grid)
        heat = np.full(shape, np.nan, dtype=np.float32)
        held_out = np.concatenate([examples.parts["validation"], examples.parts["test"]])
        wanted = [(view, clip) for view in range(shape[0]) for clip in examples.parts["train"]]
        wanted += [(0, clip) for clip in held_out]
        batch = training.evaluation_batch
        for start in progress_bar(range(0, len(wanted), batch), "rollout", -(-len(wanted) // batch), "batch"):
            views, clips = np.array(wanted[start : start + batch]).T
            some = examples.batch(clips, views, fabric.device)
            rolled = attention_rollout(model, some.spectrograms, rollout.alpha, rollout.order, rollout.token)
            heat[views, clips] = rolled.cpu().numpy()
            bad = ~np.isfinite(heat[views, clips]).all((1, 2))
            if bad.any():  # would be taken for views without rollout
                raise SamsgError(f"The rollout of {examples.said(clips[bad])} is no number; run stage i anew.")
        with atomic(folder / "heat.npy") as partial, partial.open("wb") as file:
            np.save(file, heat)

    return run.make("rollout", work)


def compute_masks(run: Run) -> Path:
    """Masks from rollouts. Leaves masks.npy, bool (V, N, 12, 99), and shares.csv: how much of each view is masked.

    Returns the stage's folder.
    """

    def work(folder: Path) -> None:
        heat = np.load(run.require("rollout") / "heat.npy")
        known = ~np.isnan(heat[:, :, 0, 0])  # (V, N)
        masks, its = np.zeros(heat.shape, dtype=bool), run.profile.mask
        model, generator, chosen = run.profile.model, torch.Generator().manual_seed(run.seed), []
        for some in torch.from_numpy(heat[known]).split(256):  # (256, 12, 99)
            chosen.append(choose_patches(some, its, generator, model.patch, model.stride))
        masks[known] = torch.cat(chosen).numpy()
        with atomic(folder / "masks.npy") as partial, partial.open("wb") as file:
            np.save(file, masks)
        clips = read_clips(run)[["clip", "part", "emotion"]]
        views = [
            clips.assign(view=name, share=masks[view].mean((1, 2)))[known[view]]
            for view, name in enumerate(run.profile.views.names)
        ]
        pd.concat(views).to_csv(folder / "shares.csv", index=False)

    return run.make("masks", work)


def train_samsg(run: Run) -> Path:
    """Stage ii: from masked spectrograms, emotion (cross-entropy) and the masked patches (mean squared error).

    Returns the stage's folder.
    """

    def work(folder: Path) -> None:
        its = run.profile.samsg
        model = load_model(run, "baseline") if its.start == "baseline" else new_model(run)
        _train(run, "samsg", folder, model, read_examples(run, masks=True), _length(run, its))

    return run.make("samsg", work, together=True)


def run_stages(run: Run, last: str = "probe") -> Path:
    """Every stage in its order, up to the last one that is wanted; what is finished is not run again. Its folder."""
    prepare(run)
    order = (train_baseline, compute_rollout, compute_masks, train_samsg, train_probe)
    for name, stage in zip(("baseline", "rollout", "masks", "samsg", "probe"), order, strict=True):
        folder = stage(run)
        if name == last:
            break
    return folder


def losses_of(run: Run, stage: str) -> Losses:
    """What a stage minimises: emotion alone, or in stage ii, from masked spectrograms, the masked patches too."""
    if stage != "samsg":
        return Losses()
    its = run.profile.samsg
    return Losses(
        its.classification_weight,
        its.reconstruction_weight,
        masked=True,
        evaluate_masked=its.evaluate_masked,
        fill=run.profile.mask.fill,
    )


def new_probe(run: Run) -> SpectrogramDeiT:
    """Stage ii's model, frozen but for the CLS token and its emotion head, which is a new one unless set otherwise."""
    model = load_model(run, "samsg").requires_grad_(False)
    if run.profile.probe.head == "new":
        torch.manual_seed(run.seed)
        model.emotion_head.reset_parameters()
    for trained in (model.vit.cls_token, *model.emotion_head.parameters()):
        trained.requires_grad_(True)
    return model


def train_probe(run: Run) -> Path:
    """Stage iii: everything frozen but the CLS token and one linear layer. Returns the stage's folder."""

    def work(folder: Path) -> None:
        _train(run, "probe", folder, new_probe(run), read_examples(run), _length(run, run.profile.probe))

    return run.make("probe", work, together=True)


def _length(run: Run, its: StageSettings) -> TrainingSettings:
    changed = {name: value for name in ("epochs", "lr") if (value := getattr(its, name)) is not None}
    return run.profile.training.model_copy(update=changed)


def _train(
    run: Run,
    stage: str,
    folder: Path,
    model: SpectrogramDeiT,
    examples: Examples,
    training: TrainingSettings,
) -> None:
    """Train a stage and leave history.csv, model.safetensors and predictions.csv in its folder."""
    fabric, losses = make_fabric(training), losses_of(run, stage)
    with quicker_attention(model, fabric.device):
        fit(fabric, model, examples, losses, training, folder, (run.seed, STAGE_KEYS[stage]), stage)
        predictions = predict(run, fabric, model, examples, losses, training.evaluation_batch)
    if fabric.is_global_zero:
        with atomic(folder / "predictions.csv") as partial:
            predictions.to_csv(partial, index=False)
        record = {"device": str(fabric.device), "precision": fabric._precision.precision}
        write_json(folder / "arithmetic.json", {**record, "processes": fabric.world_size})


def predict(run: Run, fabric: Fabric, model: nn.Module, examples: Examples, losses: Losses, batch: int) -> pd.DataFrame:
    """For the clips of validation and test: clip, part, emotion, predicted, and a column p_<emotion> a class."""
    clips = read_clips(run)
    emotions = emotions_of(clips)
    frames = []
    model = fabric.setup_module(model)
    for part in ("validation", "test"):
        probabilities, _ = evaluate(fabric, model, examples, part, losses, batch)
        frame = clips.iloc[examples.parts[part]][["clip", "part", "emotion"]].reset_index(drop=True)
        frame["predicted"] = [emotions[index] for index in probabilities.argmax(1)]
        columns = pd.DataFrame(probabilities, columns=[f"p_{emotion}" for emotion in emotions]).round(6)
        frames.append(frame.join(columns))
    return pd.concat(frames)
