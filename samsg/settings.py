"""What an experiment is: a profile of validated settings, read from configs/*.yaml.

The defaults are the numbers of Section IV-B; docs/ambiguities.md gives reasons for what the paper leaves open.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

REPOSITORY = Path(__file__).resolve().parents[1]
PROTOCOLS = ("random", "speaker", "sentence")
View = Literal["clean", "noise", "shift", "speed"]
VIEWS: tuple[View, ...] = get_args(View)
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Speed = Annotated[float, Field(ge=0.1, le=10)]
# Names of folders that pass through shells and Snakemake: no spaces, slashes, quotes, braces.
FolderName = Annotated[str, Field(pattern=re.compile(r"^[^\W_][\w.-]{0,199}$"))]
# Settings of earlier versions, and what replaces them.
RENAMED = {"rollout.order": "is now rollout.reading: 'abnar' is 'output_to_input', 'printed' is 'as_printed'"}


class Stage(NamedTuple):
    """One step of a run: its notebook, and the groups of settings that it adds to those of the earlier stages."""

    notebook: str
    groups: tuple[str, ...]


STAGES = {  # in the order of a run
    "spectrograms": Stage("01_data_preparation", ("audio", "views")),
    "baseline": Stage("02_baseline", ("model", "training")),
    "rollout": Stage("03_attention_rollout", ("rollout",)),
    "masks": Stage("04_masking", ("mask",)),
    "samsg": Stage("05_self_supervised", ("samsg",)),
    "probe": Stage("06_linear_probe", ("probe",)),
}


class SamsgError(Exception):
    """Every error that this library reports: what was asked, what was found, what to do."""


def check_name(kind: str, name: str, choices: Iterable[str], advice: str = "") -> None:
    """SamsgError unless ``name`` is one of the choices. Its message lists them and suggests a similar one."""
    if name not in (known := sorted(choices)):
        originals = {choice.casefold(): choice for choice in known}  # compared without case
        matches = difflib.get_close_matches(name.casefold(), originals, n=1)
        suggestion = f" Did you mean {originals[matches[0]]!r}?" if matches else ""
        raise SamsgError(f"There is no {kind} '{name}'; known: {', '.join(known)}.{suggestion}{advice}")


def in_repository(name: str) -> Path:
    """A file or folder that only a checkout of the repository has: configs, notebooks, tools, the Snakefile."""
    if not (REPOSITORY / name).exists():
        raise SamsgError(f"This needs '{name}' of the repository, but samsg is installed without it; use a checkout.")
    return REPOSITORY / name


def home() -> Path:
    """The folder that holds data/, runs/ and paper_figures/: $SAMSG_HOME, else the repository, else the current one."""
    default = REPOSITORY if (REPOSITORY / "configs").is_dir() else Path()
    return Path(os.environ.get("SAMSG_HOME", default)).expanduser().resolve()


class Settings(BaseModel):
    """A group of settings: unknown names are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AudioSettings(Settings):
    """The log-mel front end (Section IV-B, Eq. 1-2)."""

    sample_rate: int = Field(16_000, gt=0, le=768_000)  # Hz
    seconds: Positive = 4.0  # longer clips are cut, shorter ones are padded with zeros
    n_fft: int = Field(1024, gt=0, le=2**16)
    hop: Count = 64  # samples
    window: Count = 512  # samples, Hamming
    n_mels: int = Field(128, ge=16, le=1024)
    floor: Positive = 1e-10  # the least power; the logarithm of 0 does not exist

    @property
    def n_samples(self) -> int:
        """Samples of a clip: 64 000 in the paper."""
        return round(self.sample_rate * self.seconds)

    @property
    def n_frames(self) -> int:
        """Number of frames of a clip, with centred windows: 64 000 / 64 + 1 = 1001 in the paper."""
        return self.n_samples // self.hop + 1


class ViewSettings(Settings):
    """The augmentations (Section IV-B names three and gives no strengths)."""

    names: tuple[View, ...] = VIEWS  # 'clean' first: validation and test use it
    seed: int = 0
    snr: tuple[float, float] = (15.0, 30.0)  # dB: lowest and highest signal-to-noise ratio, of white noise
    shift: float = Field(0.4, ge=0)  # s: the farthest, earlier or later
    speed: tuple[Speed, Speed] = (0.9, 1.1)  # slowest and fastest; 1: unchanged


class ModelSettings(Settings):
    """The distilled DeiT (Section III-C)."""

    size: Literal["tiny", "small", "base"] = "base"
    depth: int | None = Field(None, ge=1, le=100)  # blocks; None: 12, as DeiT has
    patch: Count = 16  # cells
    stride: Count = 10  # cells
    weights: str = "imagenet"  # 'imagenet', 'embedded', 'dinov2', 'random', or a file of DeiT weights
    normalize: Literal["imagenet", "none"] = "imagenet"  # by ImageNet's mean and deviation of grey, or not at all


class RolloutSettings(Settings):
    """Attention rollout (Eq. 6-7) in one of three readings, or, for comparison, 'last_layer' or 'gradient'."""

    alpha: Share = 0.9  # weight of the attention in Eq. 6, of 'output_to_input' and 'as_printed'
    reading: Literal["output_to_input", "as_printed", "discard", "last_layer", "gradient"] = "output_to_input"
    discard_ratio: float = Field(0.9, ge=0, lt=1)  # share of attention entries that 'discard' sets to 0
    token: Literal["cls", "mean"] = "cls"  # the CLS row, or the mean of the CLS and distillation rows


class MaskSettings(Settings):
    """Which patches become black (Section III-D), and controls that mask the same area elsewhere."""

    strategy: Literal["rollout", "random", "least", "none"] = "rollout"
    select: Literal["threshold", "share"] = "threshold"  # patches above a threshold, or a fixed share of them
    threshold: Share = 0.5
    share: Share = 0.2
    scale: Literal["max", "minmax"] = "max"  # before the threshold: divide by the maximum, or stretch to [0, 1]
    padding: Literal["include", "exclude"] = "include"  # 'exclude' masks, and counts, patches with speech only
    fill: float = 0.0  # black


class TrainingSettings(Settings):
    """Optimisation of all three stages (Section IV-B)."""

    epochs: Count = 25
    batch: Count = 4
    lr: Positive = 1e-5
    head_lr: Positive | None = None  # of the two linear heads; None: lr
    schedule: Literal["halving", "one_cycle"] = "halving"
    halve_every: Count = 5  # epochs, of 'halving'
    warmup: int = Field(0, ge=0)  # steps of 'halving' over which lr rises linearly from 0
    weight_decay: float = Field(0.0, ge=0)  # decoupled; 0: Adam, as in the paper
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class StageSettings(Settings):
    """What a later stage changes relative to stage i; None: the same."""

    epochs: Count | None = None
    lr: Positive | None = None
    head_lr: Positive | None = None


class SamsgSettings(StageSettings):
    """Stage ii: emotion and reconstruction from masked spectrograms (Section III-D)."""

    start: Literal["baseline", "initial"] = "baseline"  # stage i's weights, or the weights that stage i started from
    classification_weight: float = Field(1.0, ge=0)
    reconstruction_weight: float = Field(1.0, ge=0)


class ProbeSettings(StageSettings):
    """Stage iii: the CLS token and one linear layer (Section III-D)."""

    head: Literal["new", "stage_ii"] = "new"  # a new linear layer, or the one that stage ii trained


class SyntheticSettings(Settings):
    """The size of an embedded corpus, spoken by a speech synthesiser."""

    speakers: Count = 4
    sentences: Count = 10
    takes: Count = 1  # of each sentence, by each speaker, in each emotion
    seed: int = 0
    strength: Positive | None = None  # of the acting; None: 1, about as in real corpora


class CorpusSettings(Settings):
    """Where a corpus is and what must be said about it."""

    reader: str = ""  # 'savee', 'emodb', 'crema_d', 'ravdess', or the path of a CSV; empty: its own name
    root: str = ""  # folder of the sound files, relative to the home folder
    title: str = ""  # as tables and figures name it
    note: str = ""  # what every table and figure must say about it: 'synthetic speech'
    synthetic: SyntheticSettings | None = None


class Profile(Settings):
    """One experiment: corpora, protocols, seeds, and every choice in between."""

    name: FolderName
    description: str = ""
    corpora: dict[FolderName, CorpusSettings]
    protocols: tuple[Literal["random", "speaker", "sentence"], ...] = ("random",)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    audio: AudioSettings = AudioSettings()
    views: ViewSettings = ViewSettings()
    model: ModelSettings = ModelSettings()
    rollout: RolloutSettings = RolloutSettings()
    mask: MaskSettings = MaskSettings()
    training: TrainingSettings = TrainingSettings()
    samsg: SamsgSettings = SamsgSettings()
    probe: ProbeSettings = ProbeSettings()
    # Set by studies.changed: stages with the same settings are shared with this profile, in its folder.
    variant_of: Self | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        problem, views = f"Profile '{self.name}' has invalid settings:", self.views.names
        if self.audio.window > self.audio.n_fft:
            raise SamsgError(f"{problem} audio.window ({self.audio.window}) exceeds audio.n_fft ({self.audio.n_fft}).")
        if views[:1] != ("clean",) or len(set(views)) != len(views):
            raise SamsgError(f"{problem} views.names must have 'clean' first, and each view once.")
        return self

    def corpus(self, name: str) -> CorpusSettings:
        """The settings of one corpus; SamsgError if the profile does not have it."""
        check_name("corpus", name, self.corpora, f" Profile '{self.name}' has no others.")
        return self.corpora[name]

    def title(self, name: str) -> str:
        """A corpus as tables and figures name it."""
        return self.corpus(name).title or name

    def note(self, name: str, protocol: str = "random") -> str:
        """What tables and figures must say about a corpus: '' for the paper's corpora under the paper's split."""
        note = self.corpus(name).note or ("synthetic speech" if self.corpus(name).synthetic else "")
        return ", ".join(filter(None, [note, f"split by {protocol}" if protocol != "random" else ""]))

    def reader(self, name: str) -> str:
        """How ``read_corpus`` reads a corpus: the name of a grammar, or the path of a CSV."""
        reader = self.corpus(name).reader or name
        return str(home() / Path(reader).expanduser()) if reader.lower().endswith(".csv") else reader

    def root(self, name: str) -> Path:
        """The folder of a corpus's sound files; a CSV's own folder unless set."""
        reader = Path(self.reader(name))
        default = reader.parent if reader.suffix.lower() == ".csv" else f"data/{name}"
        return home() / Path(self.corpus(name).root or default).expanduser()


def profile_names() -> list[str]:
    """The profiles in configs/."""
    return sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``base``, group by group."""
    groups = [key for key in base if isinstance(base[key], Mapping) and isinstance(changes.get(key), Mapping)]
    return {**base, **changes, **{key: _merge(base[key], changes[key]) for key in groups}}


def _read_yaml(name: str, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A profile's content, laid over that of the profile it extends; ``children`` are the files that extend it."""
    if name.endswith((".yaml", ".yml")):
        path = (children[-1].parent if children else Path()) / Path(name).expanduser()
    else:
        path = in_repository("configs") / f"{name}.yaml"
        check_name("profile", name, profile_names(), " Or give the path of your own .yaml file.")
    if not path.is_file() or path.resolve() in children:
        raise SamsgError(f"Profile {path} {'extends itself' if path.is_file() else 'does not exist'}.")
    try:
        content = dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise SamsgError(f"Profile {path} cannot be read as YAML with names and values: {error}") from error
    if (parent := content.pop("extends", None)) is not None:
        base = _read_yaml(str(parent), (*children, path.resolve()))
        if isinstance(entries := content.get("corpora"), Mapping):  # only corpora that the child names are inherited
            parent_entries = base.get("corpora") or {}
            base["corpora"] = {corpus: entry for corpus, entry in parent_entries.items() if corpus in entries}
        content = _merge(base, content)
    return {**content, "name": path.stem}


def load_profile(profile: str | Path = "demo", /, **overrides: Any) -> Profile:
    """Read a profile, a name in configs/ or the path of a .yaml file, and change settings: ``mask={"threshold": 0.4}``.

    With another ``name`` it has its own runs. SamsgError if there is no such profile, or a setting is unknown or out of
    range.
    """
    try:
        return Profile.model_validate(_merge(_read_yaml(str(profile)), overrides))
    except ValidationError as error:
        groups = [*Settings.__subclasses__(), *StageSettings.__subclasses__()]
        names, problems = {name for group in groups for name in group.model_fields}, []
        for problem in error.errors():
            setting, message = ".".join(map(str, problem["loc"])), f"{problem['msg']} (found {problem['input']!r:.100})"
            if problem["type"] == "extra_forbidden":
                matches = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1, cutoff=0.75)
                message = RENAMED.get(setting, f"unknown setting{f'; did you mean {matches[0]!r}?' if matches else ''}")
            problems.append(f"{setting}: {message}")
        raise SamsgError(f"Profile '{profile}' has invalid settings: {'; '.join(problems)}") from error
