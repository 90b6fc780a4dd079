"""What an experiment is: a profile of validated settings, read from configs/*.yaml.

Section IV-B of the paper fixes most of these numbers; they are the defaults here. What the paper leaves open is a
setting as well, its default explained in docs/ambiguities.md. A profile may extend another and change a few values.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

REPOSITORY = Path(__file__).resolve().parents[1]
VIEWS: tuple[Literal["clean", "noise", "shift", "speed"], ...] = ("clean", "noise", "shift", "speed")
PROTOCOLS = ("random", "speaker", "sentence")
# Profiles and corpora name folders, and go through shells and Snakemake: no spaces, slashes, quotes, braces, line ends.
NAME = re.compile(r"[^\W_][\w.-]{0,99}")
SHORT = reprlib.Repr()  # for messages: a few lines of YAML may stand for billions of values
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 200, 200


class SamsgError(Exception):
    """Everything that this library reports: what was asked, what was found, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists what is known and, if one is close, what was probably meant."""
    known = sorted(known)
    folded = {entry.casefold(): entry for entry in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    meant = f" Did you mean '{folded[close[0]]}'?" if close else ""
    return f"known: {', '.join(known)}.{meant}"


def in_repository(name: str) -> Path:
    """A file or folder of the repository that is no part of the package: configs, notebooks, the workflow.

    Raises:
        SamsgError: samsg was installed without the repository around it, from a wheel say.
    """
    path = REPOSITORY / name
    if not path.exists():
        raise SamsgError(
            f"'{name}' of the repository is needed, but samsg lies in {REPOSITORY} without it; get a checkout and "
            "install it from there: 'make lab', or 'pip install --editable .'."
        )
    return path


def home() -> Path:
    """The folder that holds data/, runs/ and paper_figures/: $SAMSG_HOME, or else the repository.

    Where samsg was installed without the repository, it is the working directory.
    """
    default = REPOSITORY if (REPOSITORY / "configs").is_dir() else Path()
    return Path(os.environ.get("SAMSG_HOME", default)).expanduser().resolve()


class Settings(BaseModel):
    """A group of settings: unknown names are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AudioSettings(Settings):
    """The log-mel front end (Section IV-B, Eq. 1-2)."""

    sample_rate: int = Field(16_000, gt=0, le=768_000)  # Hz
    seconds: float = Field(4.0, gt=0)  # longer clips are cut, shorter ones padded with zeros
    n_fft: int = Field(1024, gt=0, le=2**16)
    hop: int = Field(64, gt=0)  # samples
    window: int = Field(512, gt=0)  # samples, Hamming
    n_mels: int = Field(128, ge=16, le=1024)
    floor: float = Field(1e-10, gt=0)  # power below which the logarithm is taken of this instead
    scaling: Literal["minmax", "standardize"] = "minmax"

    @model_validator(mode="after")
    def _window_fits(self) -> AudioSettings:
        if self.window > self.n_fft:
            raise ValueError(f"window ({self.window}) must not be longer than n_fft ({self.n_fft})")
        return self

    @property
    def n_samples(self) -> int:
        """Samples of a clip: 64 000 in the paper."""
        return round(self.sample_rate * self.seconds)

    @property
    def n_frames(self) -> int:
        """Centred frames of a clip: 64 000 / 64 + 1 = 1001 in the paper."""
        return self.n_samples // self.hop + 1


class ViewSettings(Settings):
    """The augmentations (Section IV-B names three and gives no strengths)."""

    names: tuple[Literal["clean", "noise", "shift", "speed"], ...] = VIEWS
    seed: int = 0
    snr: tuple[float, float] = (15.0, 30.0)  # dB, of the white noise
    shift: float = Field(0.4, ge=0)  # s, at most, to either side
    speed: tuple[Annotated[float, Field(ge=0.1)], Annotated[float, Field(le=10)]] = (0.9, 1.1)

    @field_validator("names")
    @classmethod
    def _has_clean(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names) or names[:1] != ("clean",):
            raise ValueError("name each view once, 'clean' first: it is the one that is tested")
        return names

    @field_validator("snr", "speed")
    @classmethod
    def _is_range(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError("give the lower bound first")
        return bounds


class ModelSettings(Settings):
    """The distilled DeiT (Section III-C)."""

    size: Literal["tiny", "small", "base"] = "base"
    depth: int | None = Field(None, ge=1, le=100)  # blocks; None: as the size has them, 12
    patch: int = Field(16, gt=0)
    stride: int = Field(10, gt=0)
    weights: str = "imagenet"  # 'imagenet', 'random', or a file of DeiT's own weights
    # Spectrograms in [0, 1] are grey pictures; 'imagenet' brings them to DeiT as its pictures were. Without effect on
    # spectrograms that are standardized already.
    normalize: Literal["imagenet", "none"] = "imagenet"


class RolloutSettings(Settings):
    """Attention rollout (Eq. 6-7)."""

    alpha: float = Field(0.9, ge=0, le=1)
    order: Literal["abnar", "printed"] = "abnar"
    token: Literal["cls", "mean"] = "cls"


class MaskSettings(Settings):
    """Which patches are blackened (Section III-D), and the controls that mask as many others."""

    # 'rollout' in the paper. The others mask as many patches of each view: at random, those with the least rollout, or
    # stripes of time and frequency; or none.
    strategy: Literal["rollout", "random", "least", "stripes", "none"] = "rollout"
    # How many: those above a threshold, 0.5 in the paper; a fixed share of all; or Otsu's threshold, view by view.
    select: Literal["threshold", "share", "otsu"] = "threshold"
    threshold: float = Field(0.5, ge=0, le=1)
    share: float = Field(0.2, ge=0, le=1)
    # What the threshold is compared with: the rollout's row over its maximum, or stretched from its least value.
    scale: Literal["max", "minmax"] = "max"
    fill: float = 0.0


class TrainingSettings(Settings):
    """Optimisation of all three stages (Section IV-B)."""

    epochs: int = Field(25, ge=1)
    batch: int = Field(4, ge=1)
    lr: float = Field(1e-5, gt=0)
    halve_every: int = Field(5, ge=1)  # epochs
    warmup: int = Field(0, ge=0)  # steps over which lr rises linearly from 0
    evaluation_batch: int = Field(16, ge=1)
    views: Literal["one", "all"] = "one"  # an epoch shows one view of each clip, or all of them
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class StageSettings(Settings):
    """What a later stage does otherwise than stage i; None: the same."""

    epochs: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)


class SamsgSettings(StageSettings):
    """Stage ii: emotion and reconstruction from masked spectrograms (Section III-D)."""

    start: Literal["baseline", "initial"] = "baseline"  # stage i's weights, or those that stage i started from
    classification_weight: float = Field(1.0, ge=0)
    reconstruction_weight: float = Field(1.0, ge=0)
    evaluate_masked: bool = False  # validate and test on masked spectrograms


class ProbeSettings(StageSettings):
    """Stage iii: the CLS token and one linear layer (Section III-D)."""

    head: Literal["new", "stage_ii"] = "new"  # a fresh linear layer, or the one that stage ii trained


class SyntheticSettings(Settings):
    """The size of an embedded corpus, spoken by a synthesiser."""

    speakers: int = Field(4, ge=1)
    sentences: int = Field(10, ge=1)
    takes: int = Field(1, ge=1)  # of each sentence, by each speaker, in each emotion
    seed: int = 0
    # Share of the training and validation clips that say their emotion's own sentence; test clips say any. With it the
    # corpus has 8 clips of each emotion by each speaker, and a split of its own. EmoDB alone.
    shortcut: float | None = Field(None, ge=0, le=1)


class CorpusSettings(Settings):
    """Where a corpus lies and what must be said of it."""

    # 'savee', 'emodb', 'crema_d', 'folders' (one for each class), or a CSV file's path; empty: the corpus' own name
    reader: str = ""
    root: str = ""  # folder of its sound files, below the home folder unless absolute
    title: str = ""  # as tables and figures name it
    note: str = ""  # what every table and figure must say of it: 'synthetic speech'
    synthetic: SyntheticSettings | None = None


class Profile(Settings):
    """One experiment: corpora, protocols, seeds, and every choice in between."""

    name: str
    description: str = ""
    corpora: dict[str, CorpusSettings]
    protocols: tuple[str, ...] = ("random",)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    audio: AudioSettings = AudioSettings()
    views: ViewSettings = ViewSettings()
    model: ModelSettings = ModelSettings()
    rollout: RolloutSettings = RolloutSettings()
    mask: MaskSettings = MaskSettings()
    training: TrainingSettings = TrainingSettings()
    samsg: SamsgSettings = SamsgSettings()
    probe: ProbeSettings = ProbeSettings()
    # The profile that this one is a variant of: what both would make alike is made once, among that one's runs.
    variant_of: Profile | None = Field(None, exclude=True, repr=False)

    @field_validator("name", "corpora")
    @classmethod
    def _names_of_folders(cls, named: Any) -> Any:
        for name in (named,) if isinstance(named, str) else named:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name[:100]!r} cannot be the name of a profile or corpus, whose folder is called so: letters, "
                    "digits, '_', '-' and '.', a letter or digit first; the title may be anything"
                )
        return named

    @field_validator("protocols")
    @classmethod
    def _known_protocols(cls, protocols: tuple[str, ...]) -> tuple[str, ...]:
        for protocol in protocols:
            if protocol not in PROTOCOLS:
                raise ValueError(f"there is no protocol '{protocol}'; {nearest(protocol, PROTOCOLS)}")
        return protocols

    def corpus(self, name: str) -> CorpusSettings:
        """The settings of one of this profile's corpora.

        Raises:
            SamsgError: the profile has no such corpus.
        """
        if name not in self.corpora:
            raise SamsgError(f"Profile '{self.name}' has no corpus '{name}'; {nearest(name, self.corpora)}")
        return self.corpora[name]

    def title(self, name: str) -> str:
        """A corpus as tables and figures name it."""
        return self.corpus(name).title or name

    def note(self, name: str, protocol: str = "random") -> str:
        """What every table and figure must say of a corpus; empty for the paper's corpora under the paper's split."""
        corpus = self.corpus(name)
        said = [corpus.note or ("synthetic speech" if corpus.synthetic else "")]
        said += [f"split by {protocol}"] if protocol != "random" else []
        return ", ".join(filter(None, said))

    def reader(self, name: str) -> str:
        """How a corpus is read, as ``read_corpus`` takes it: a grammar's name, 'folders', or the path of a CSV."""
        reader = self.corpus(name).reader or name
        return str(home() / reader) if reader.lower().endswith(".csv") else reader

    @property
    def asked_as(self) -> str:
        """What '--profile' takes for this profile: its name in configs/, or else a file of that name."""
        return self.name if self.name in profile_names() else f"{self.name}.yaml"

    @property
    def weights(self) -> str:
        """What the model starts from: 'imagenet', 'random', or a file's path, below the home folder unless absolute."""
        named = self.model.weights
        return named if named in ("imagenet", "random") else str(home() / Path(named).expanduser())

    def root(self, name: str) -> Path:
        """The folder of a corpus' sound files; that of its list, for a CSV, unless set."""
        corpus = self.corpus(name)
        listed = Path(corpus.reader).parent if corpus.reader.lower().endswith(".csv") else f"data/{name}"
        return home() / Path(corpus.root or listed).expanduser()


def profile_names() -> list[str]:
    """The profiles in configs/."""
    return sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            value = _merge(merged[key], value)
        merged[key] = value
    return merged


def _read(name: str, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        path = (chain[-1].parent if chain else Path()) / Path(name).expanduser()  # a parent is named from its child
    else:
        path = in_repository("configs") / f"{name}.yaml"
    if not os.path.isfile(path):  # unlike Path.is_file, for names of any length
        raise SamsgError(
            f"There is no profile '{name}' (looked for {path}); {nearest(name, profile_names())} "
            "Give one of these, or the path of your own .yaml file."
        )
    if path.resolve() in chain:
        raise SamsgError(f"Profile '{name}' extends itself; take the 'extends' line out of one of: {chain}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except Exception as error:  # PyYAML passes on ValueError, AttributeError, RecursionError too
        raise SamsgError(f"Profile {path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise SamsgError(
            f"Profile {path} holds a {type(content).__name__}; expected names with values, as in demo.yaml."
        )
    parent = content.pop("extends", None)
    if parent is not None:
        base = _read(str(parent), (*chain, path.resolve()))
        # A profile that names corpora means those alone; what it says of each is laid over the parent's words.
        named = content.get("corpora")
        if isinstance(named, Mapping):
            inherited = base.get("corpora")
            inherited = inherited if isinstance(inherited, Mapping) else {}
            base["corpora"] = {key: inherited.get(key, {}) for key in named}
            content["corpora"] = {key: value or {} for key, value in named.items()}
        content = _merge(base, content)
    return {**content, "name": path.stem}


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The group of settings in ``Group``, ``Group | None`` or ``dict[str, Group]``; None in anything else."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)


def explain(error: ValidationError, root: type[Settings] = Profile) -> str:
    """What is wrong with a group of settings: the name of each, what was found, and what may be there."""
    lines = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        where, message = ".".join(place), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            group = root
            for part in place[:-1]:
                if part in group.model_fields:
                    group = _settings_in(group.model_fields[part].annotation) or group  # a corpus' name is none
            message = f"there is no such setting; {nearest(place[-1], group.model_fields)}"
        else:
            message += f" (found {SHORT.repr(problem.get('input'))})"
        lines.append(f"{where}: {message}")
    return "; ".join(lines)


def load_profile(profile: str | Path = "demo", /, **overrides: Any) -> Profile:
    """Read a profile from configs/ or from a YAML file, and change some of its settings.

    Args:
        profile: a name in configs/, or the path of a .yaml file.
        overrides: settings to change, groups as dictionaries: ``mask={"threshold": 0.4}``; with another ``name`` the
            changed profile keeps runs of its own.

    Raises:
        SamsgError: there is no such profile, or a setting is unknown or out of range.
    """
    try:
        return Profile.model_validate(_merge(_read(str(profile)), overrides))
    except ValidationError as error:
        raise SamsgError(f"Profile '{profile}' has settings that cannot be: {explain(error)}") from error
    except RecursionError as error:
        raise SamsgError(f"Profile '{profile}' has settings that hold themselves, or lie too deep.") from error
