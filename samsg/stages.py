"""A run and its stages: one corpus, protocol and seed under one profile (Fig. 1).

Results go to runs/<profile>/<corpus>/<protocol>/seed<k>/<stage>/. A stage's folder is whole or absent and holds the
settings it was made with: with the same settings there is nothing to do, with others it is an error that names the
difference. A run is identified by its settings and by the content of its corpus, not by paths.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from samsg import corpora
from samsg.audio import CLIPS, open_spectrograms, write_spectrograms
from samsg.masking import choose_patches, speech_patches
from samsg.model import EMBEDDED, SpectrogramDeiT, build_model
from samsg.rollout import attention_rollout
from samsg.settings import PROTOCOLS, STAGES, Profile, SamsgError, StageSettings, check_name, home, load_profile
from samsg.splits import split
from samsg.storage import progress, provenance, report, whole_folder, write_json
from samsg.training import CHECKPOINT, EVALUATION_BATCH, HISTORY, WEIGHTS, Examples, Objective, fit, make_fabric

SETTINGS, RECORD, PREDICTIONS, HEAT, MASKS = "settings.json", "record.json", "predictions.csv", "heat.npy", "masks.npy"
TEXT = ("clip", "path", "corpus", "speaker", "sentence", "emotion", "part", "predicted", "variant", "reason", "sha256")
CreateModel = Callable[["Run"], SpectrogramDeiT]  # a run -> the model that a stage trains


@dataclass(frozen=True)
class Run:
    """One corpus, protocol and seed under one profile."""

    profile: Profile
    corpus: str
    protocol: str
    seed: int

    def stage_folder(self, name: str) -> Path:
        """The folder of one stage; a variant shares that of its profile where their settings are equal."""
        base_run = replace(self, profile=self.profile.variant_of or self.profile)
        if base_run != self and base_run.settings(name) == self.settings(name):
            return base_run.stage_folder(name)
        folder = home() / "runs" / self.profile.name / self.corpus
        return folder / name if name == "spectrograms" else folder / self.protocol / f"seed{self.seed}" / name

    def settings(self, name: str) -> dict[str, Any]:
        """The groups of settings that decide a stage's result: its own and those of earlier stages."""
        stages = list(STAGES.values())[: list(STAGES).index(name) + 1]
        groups = [group for stage in stages for group in stage.groups]
        return self.profile.model_dump(mode="json", include=set(groups))

    def identity(self, name: str, fingerprint: str = "") -> dict[str, Any]:
        """What a stage's folder records: settings, fingerprint of the (prepared) corpus, split and seed."""
        if not fingerprint and (path := self.stage_folder("spectrograms") / SETTINGS).is_file():
            fingerprint = json.loads(path.read_text())["fingerprint"]
        identity = {**self.settings(name), "fingerprint": fingerprint}
        if name != "spectrograms":
            identity |= {"protocol": self.protocol, "seed": self.seed}
            if self.profile.model.weights == "embedded":  # another edition of these weights is another experiment
                identity["embedded"] = corpora.hash_files([EMBEDDED])[0]
        return identity

    def is_finished(self, name: str, fingerprint: str = "") -> bool:
        """Whether a stage is complete; SamsgError if it was made with other settings or from other sounds."""
        folder, identity = self.stage_folder(name), self.identity(name, fingerprint)
        if not (folder / SETTINGS).is_file():
            return False
        if (record := json.loads((folder / SETTINGS).read_text())) != identity:
            old, new = (pd.json_normalize(entry).to_dict("records")[0] for entry in (record, identity))
            keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
            changes = "; ".join(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in keys)
            advice = f"Give the changed profile another name, or remove {folder} and what was made from it."
            raise SamsgError(f"{folder} was made with other settings or sounds: {changes}. {advice}")
        return True

    def require(self, name: str) -> Path:
        """The folder of a stage that must be finished."""
        if not self.is_finished(name):
            run_name = f"{self.corpus} ({self.protocol}, seed {self.seed})"
            raise SamsgError(f"Stage '{name}' of {run_name} is not finished; {STAGES[name].notebook}.ipynb makes it.")
        return self.stage_folder(name)

    def make(self, name: str, work: Callable[[Path], None], fingerprint: str = "") -> Path:
        """Work in a partial folder unless the stage is finished. Returns the stage's folder. Parallel calls wait."""
        folder = self.stage_folder(name)
        if self.is_finished(name, fingerprint):
            print(f"Stage '{name}': loaded from an earlier run, {folder.relative_to(home())}.")
            return folder
        with whole_folder(folder) as partial:
            if self.is_finished(name, fingerprint):  # another process made it meanwhile
                return folder
            start_time, identity, path = time.perf_counter(), self.identity(name, fingerprint), partial / SETTINGS
            if partial.exists() and not (path.is_file() and json.loads(path.read_text()) == identity):
                shutil.rmtree(partial)  # of other settings; with the same ones training continues from its checkpoint
            for leftover in partial.glob(".*.partial"):  # of a process that was killed
                leftover.unlink()
            write_json(path, identity)
            work(partial)
            seconds = round(time.perf_counter() - start_time, 2)
            record = vars(self) | {"profile": self.profile.model_dump(mode="json"), "seconds": seconds}
            write_json(partial / RECORD, record | provenance())
        (folder / CHECKPOINT).unlink(missing_ok=True)  # last: without it a killed stage would begin again
        report(f"{self.corpus:10} {name:12} done in {seconds:.0f} s")
        return folder


def open_run(
    profile: str | Path | Profile = "demo", corpus: str = "emodb", protocol: str = "random", seed: int = 0
) -> Run:
    """One run of a profile; SamsgError if there is no such profile, corpus or protocol, or if the seed is negative."""
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    profile.corpus(corpus)
    check_name("protocol", protocol, PROTOCOLS)
    if seed < 0:
        raise SamsgError(f"A seed is a whole number from 0; found {seed}.")
    return Run(profile, corpus, protocol, seed)


def find_run(name: str | Path) -> Run | None:
    """A finished run with the settings that it was made with, or None; SamsgError if another version made it, or if it
    was moved. ``name``: 'demo/savee' (protocol random, seed 0), 'demo/savee/speaker/seed1', or the folder."""
    folder = home() / "runs" / name  # an absolute path replaces runs/
    paths = [folder / part / "probe" / RECORD for part in ("random/seed0", "seed0", "")]
    if not (path := next(filter(Path.is_file, paths), None)):
        return None
    record = json.loads(path.read_text())
    try:
        run = open_run(Profile(**record["profile"]), record["corpus"], record["protocol"], record["seed"])
    except (ValidationError, KeyError) as error:
        raise SamsgError(f"{path.parents[1]} is of another version; remove it and run 'samsg reproduce'.") from error
    if (folder := run.stage_folder("probe").resolve()) != path.parent.resolve():  # the name would open another run
        raise SamsgError(f"{path.parents[1]} was moved from {folder.parent}; move it back, or set SAMSG_HOME.")
    return run


def finished_runs(profile: Profile, protocol: str = "random", names: Collection[str] = ()) -> dict[str, list[int]]:
    """Corpus -> the profile's seeds whose last stage is finished, of all corpora or those named; SamsgError if none."""
    seeds_by_corpus: dict[str, list[int]] = {}
    for corpus, seed in product(names or profile.corpora, profile.seeds):
        if open_run(profile, corpus, protocol, seed).is_finished("probe"):
            seeds_by_corpus.setdefault(corpus, []).append(seed)
    if not seeds_by_corpus:
        advice = f"'samsg reproduce --profile {profile.name}' runs them all"
        raise SamsgError(f"No corpus of profile '{profile.name}' is finished under protocol '{protocol}'; {advice}.")
    return seeds_by_corpus


def read_table(path: Path) -> pd.DataFrame:
    """A table of clips or a history. The columns of TEXT stay text: '01', 'None', ''. In the others '' is NaN."""
    columns = pd.read_csv(path, nrows=0).columns
    na_values = {column: [""] for column in columns if column not in TEXT}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=na_values)


def read_manifest(run: Run) -> pd.DataFrame:
    """The manifest of the run's corpus; an embedded corpus is spoken first."""
    synthetic, reader = run.profile.corpus(run.corpus).synthetic, run.profile.reader(run.corpus)
    root = run.profile.root(run.corpus)
    if synthetic is not None:
        from samsg.synthetic import write_corpus  # praat-parselmouth is an extra

        write_corpus(reader, root, synthetic)
    elif (root / corpora.SYNTHETIC_NOTE).is_file() and "synthetic speech" not in run.profile.note(run.corpus):
        problem = f"{root} holds synthetic speech, but profile '{run.profile.name}' has no 'synthetic' entry for it"
        raise SamsgError(f"{problem}. Add one, as in configs/demo.yaml, or a note that says so, or name another root.")
    manifest = corpora.read_corpus(reader, root)
    if (root / corpora.SYNTHETIC_NOTE).is_file() and (root / corpora.PARTS_FILE).is_file():
        manifest = manifest.merge(read_table(root / corpora.PARTS_FILE), on="path", validate="one_to_one")
    return manifest


def read_clips(run: Run) -> pd.DataFrame:
    """The usable clips of the corpus: the manifest with columns sha256, samples (at the profile's rate) and part;
    SamsgError if the same recording of an emotion is in two parts: the test part would not be unseen."""
    clips = split(read_table(run.require("spectrograms") / CLIPS), run.protocol, run.seed)
    n_parts = clips.groupby(["sha256", "emotion"])["part"].transform("nunique")
    if (n_parts > 1).any():
        paths = ", ".join(clips.loc[n_parts > 1, "path"].head(4))
        raise SamsgError(f"{run.corpus} has the same recording of an emotion in two parts: {paths}. Keep one copy.")
    return clips


def read_examples(run: Run, masks: bool = False) -> Examples:
    """The run's spectrograms, labels and parts, and its masks for stage ii, as the training loop takes them."""
    clips = read_clips(run)
    return Examples(
        spectrograms=open_spectrograms(run.require("spectrograms"), run.profile.audio, run.profile.views),
        labels=clips["emotion"].map(corpora.emotions_of(clips).index).to_numpy(),
        parts={part: np.flatnonzero(clips["part"] == part) for part in corpora.PARTS},
        names=clips["clip"].to_numpy(),
        masks=np.load(run.require("masks") / MASKS, mmap_mode="r") if masks else None,
    )


def prediction_table(clips: pd.DataFrame, probabilities: np.ndarray, emotions: list[str]) -> pd.DataFrame:
    """Columns clip, part, emotion, predicted, and p_<emotion> for each class."""
    table = clips[["clip", "part", "emotion"]].reset_index(drop=True)
    table["predicted"] = [emotions[index] for index in probabilities.argmax(1)]
    return table.join(pd.DataFrame(probabilities, columns=[f"p_{emotion}" for emotion in emotions]).round(6))


def read_predictions(run: Run, stage: str, part: str = "test") -> pd.DataFrame:
    """A stage's predictions: clip, part, emotion, predicted, p_<emotion>, speaker, sentence, seed."""
    table = read_table(run.require(stage) / PREDICTIONS).query("part == @part")
    clips = read_clips(run)[["clip", "speaker", "sentence"]]
    return table.merge(clips, on="clip", validate="one_to_one").assign(seed=run.seed)


def svm_predictions(run: Run) -> pd.DataFrame:
    """Test predictions of a linear SVM, the floor that a deep model must clear: as ``read_predictions``, without p_.

    It sees three statistics over time of each band of the clean log-mel (128, T): mean, standard deviation, and mean
    absolute difference of neighbouring frames, all standardised. C is 0.001 and not tuned."""
    clips, mels = read_clips(run), (views[0].astype(np.float32) for views in read_examples(run).spectrograms)
    features = np.stack([np.concatenate([x.mean(1), x.std(1), np.abs(np.diff(x)).mean(1)]) for x in mels])  # (N, 384)
    is_train, is_test = ((clips["part"] == part).to_numpy() for part in ("train", "test"))
    svm = make_pipeline(StandardScaler(), LinearSVC(C=0.001, max_iter=20_000, random_state=0))
    predictions = svm.fit(features[is_train], clips["emotion"][is_train]).predict(features[is_test])
    table = clips.loc[is_test, ["clip", "part", "emotion", "speaker", "sentence"]].reset_index(drop=True)
    return table.assign(predicted=predictions, seed=run.seed)


def read_history(run: Run, stage: str) -> pd.DataFrame:
    """A stage's history, one row an epoch."""
    return read_table(run.require(stage) / HISTORY)


# The stages, in their order


def check_sounds(run: Run) -> None:
    """Make sure that the corpus exists (an embedded one is spoken later) and has not changed since it was prepared."""
    if run.profile.corpus(run.corpus).synthetic is None or run.stage_folder("spectrograms").exists():
        run.is_finished("spectrograms", corpora.fingerprint(read_manifest(run), run.profile.root(run.corpus)))


def prepare(run: Run) -> Path:
    """Read every sound of the corpus and compute the spectrograms of all views; SamsgError if the corpus is missing,
    incomplete, without usable sounds, or has changed since it was prepared."""
    manifest, root = read_manifest(run), run.profile.root(run.corpus)
    manifest = manifest.assign(sha256=corpora.hash_files(root / path for path in manifest["path"]))
    options = {"manifest": manifest, "root": root, "audio": run.profile.audio, "views": run.profile.views}
    return run.make("spectrograms", partial(write_spectrograms, **options), corpora.fingerprint(manifest, root))


def new_model(run: Run) -> SpectrogramDeiT:
    """The run's model before training; random weights depend on the seed only."""
    torch.manual_seed(run.seed)
    return build_model(run.profile.model, run.profile.audio, len(corpora.emotions_of(read_clips(run))))


def load_model(run: Run, stage: str) -> SpectrogramDeiT:
    """The model of the best validation epoch of stage 'baseline', 'samsg' or 'probe'; SamsgError if there is none."""
    path, n_classes = run.require(stage) / WEIGHTS, len(corpora.emotions_of(read_clips(run)))
    model = build_model(run.profile.model, run.profile.audio, n_classes, weights="random")
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise SamsgError(f"{path} does not hold the model of stage '{stage}': {error} Remove {path.parent}.") from error
    return model.eval()


def train_baseline(run: Run) -> Path:
    """Stage i: DeiT learns emotions from spectrograms, with cross-entropy."""
    return _train(run, "baseline", new_model, Objective(), StageSettings())


def compute_rollout(run: Run) -> Path:
    """The rollout of stage i's model on every view of the training clips and on the clean view of the others.

    Leaves heat.npy, float32 (N, V, 12, 99), NaN where nothing was computed. In single precision: where attention is
    nearly even, coarser rounding would decide which patches are important.
    """

    def work(folder: Path) -> None:
        examples, model = read_examples(run), load_model(run, "baseline")
        device = make_fabric(run.profile.training.device, run.profile.training.precision).device
        heat = np.full((*examples.spectrograms.shape[:2], *model.to(device).grid), np.nan, np.float32)
        is_needed = np.zeros(heat.shape[:2], bool)  # (N, V)
        is_needed[examples.parts["train"]], is_needed[:, 0] = True, True
        clips, views = np.nonzero(is_needed)
        for start in progress(range(0, len(clips), EVALUATION_BATCH), "rollout", -(-len(clips) // EVALUATION_BATCH)):
            batch_slice = slice(start, start + EVALUATION_BATCH)
            batch = examples.batch(clips[batch_slice], views[batch_slice], device)
            maps = attention_rollout(model, batch.spectrograms, **run.profile.rollout.model_dump())  # (B, 12, 99)
            heat[clips[batch_slice], views[batch_slice]] = maps.cpu().numpy()
        np.save(folder / HEAT, heat)

    return run.make("rollout", work)


def compute_masks(run: Run) -> Path:
    """Masks from rollouts. Leaves masks.npy, bool (N, V, 12, 99), False where there is no rollout."""

    def work(folder: Path) -> None:
        heat, examples = np.load(run.require("rollout") / HEAT), read_examples(run)
        patch, stride = run.profile.model.patch, run.profile.model.stride
        masks, generator = np.zeros(heat.shape, bool), torch.Generator().manual_seed(run.seed)
        clips, views = np.nonzero(~np.isnan(heat[:, :, 0, 0]))  # those with a rollout
        for start in range(0, len(clips), 256):
            indices = clips[start : start + 256], views[start : start + 256]
            speech = speech_patches(examples.batch(*indices).spectrograms, patch, stride)  # (B, 12, 99)
            maps = torch.from_numpy(heat[indices])  # (B, 12, 99)
            masks[indices] = choose_patches(maps, run.profile.mask, generator, patch, stride, speech).numpy()
        np.save(folder / MASKS, masks)

    return run.make("masks", work)


def train_samsg(run: Run) -> Path:
    """Stage ii: learn emotions (cross-entropy) and masked patches (mean squared error) from masked spectrograms.

    It starts from stage i's model, or from the model that stage i started from.
    """
    settings, fill = run.profile.samsg, run.profile.mask.fill
    objective = Objective(settings.classification_weight, settings.reconstruction_weight, masked=True, fill=fill)
    create_model = partial(load_model, stage="baseline") if settings.start == "baseline" else new_model
    return _train(run, "samsg", create_model, objective, settings)


def new_probe(run: Run) -> SpectrogramDeiT:
    """Stage ii's model, frozen except for the CLS token and the emotion head, which is new unless set otherwise."""
    model = load_model(run, "samsg").requires_grad_(False)
    if run.profile.probe.head == "new":
        torch.manual_seed(run.seed)
        model.emotion_head.reset_parameters()
    for parameter in (model.vit.cls_token, *model.emotion_head.parameters()):
        parameter.requires_grad_(True)
    return model


def train_probe(run: Run) -> Path:
    """Stage iii: the CLS token and one linear layer learn emotions; all else is frozen."""
    return _train(run, "probe", new_probe, Objective(), run.profile.probe)


def _train(run: Run, stage: str, create_model: CreateModel, objective: Objective, changes: StageSettings) -> Path:
    """Train a stage; it leaves history.csv, model.safetensors and predictions.csv (validation and test)."""

    def work(folder: Path) -> None:
        clips, examples = read_clips(run), read_examples(run, objective.masked)
        updates = changes.model_dump(include=set(StageSettings.model_fields), exclude_none=True)
        settings = run.profile.training.model_copy(update=updates)
        key, title = (run.seed, list(STAGES).index(stage)), f"{run.corpus:10} {stage:12}"
        probabilities = fit(create_model(run), examples, objective, settings, folder, key, title)
        emotions, parts = corpora.emotions_of(clips), examples.parts
        tables = [prediction_table(clips.iloc[parts[part]], values, emotions) for part, values in probabilities.items()]
        pd.concat(tables).to_csv(folder / PREDICTIONS, index=False)

    return run.make(stage, work)


WORK = dict(
    zip(STAGES, (prepare, train_baseline, compute_rollout, compute_masks, train_samsg, train_probe), strict=True)
)


def run_stages(run: Run, last: str = "probe") -> Path:
    """Every stage in its order, up to the last one wanted; finished ones are not run again. The last one's folder."""
    check_name("stage", last, STAGES)
    for name, work in WORK.items():
        folder = work(run)
        if name == last:
            break
    return folder
