"""What strangers wrote (tables, profiles, archives, models) is read or refused in a sentence, and never run."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from safetensors.torch import load_file, save_file
from sounds import noise, wav

import samsg
from samsg.audio.store import read_sound
from samsg.corpora import acquire
from samsg.corpora.verify import STATUSES, listen
from samsg.runs import partial_of
from samsg.settings import REPOSITORY, SamsgError

FUZZED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Names


@pytest.mark.parametrize("name", ["../x", "..", ".x", "", "a/b", "a b", "a;b", "a\nb", "{x}", "$(x)", "a'b", "x" * 101])
def test_names_that_would_lead_out_of_a_folder_or_into_a_shell_are_refused(name: str) -> None:
    with pytest.raises(SamsgError, match=r"name: .* cannot be the name of a profile or corpus"):
        samsg.load_profile("demo", name=name)
    with pytest.raises(SamsgError, match=r"corpora: .* cannot be the name of a profile or corpus"):
        samsg.load_profile("demo", corpora={name: {}})


@pytest.mark.parametrize("name", ["mine", "demo.samsg", "Größe_2", "007", "a-b.c"])
def test_plain_names_are_kept(name: str) -> None:
    assert samsg.load_profile("demo", name=name, corpora={name: {}}).corpus(name).title == ""


def test_a_profile_whose_file_is_called_like_the_folder_above_is_refused(tmp_path: Path) -> None:
    (tmp_path / "...yaml").write_text("extends: demo")  # its stem is '..'
    with pytest.raises(SamsgError, match=r"'\.\.' cannot be the name"):
        samsg.load_profile(tmp_path / "...yaml")


@pytest.mark.parametrize(
    "value", ["'; import os; os.system('true') #", '"""', "a\\\nb", "{x} %s $HOME `x`", "\\", "ü\u2028"]
)
def test_a_notebooks_parameters_arrive_as_they_are(value: str) -> None:
    notebook = load_notebook_node(str(REPOSITORY / "notebooks/02_baseline.ipynb"))
    filled = parameterize_notebook(notebook, {"profile": value, "corpus": value, "seed": 0})
    cell = next(cell for cell in filled.cells if "injected-parameters" in cell.metadata.get("tags", []))
    found: dict[str, object] = {}
    exec(cell.source, found)
    assert (found["profile"], found["corpus"], found["seed"]) == (value, value, 0)


# Profiles


@pytest.mark.parametrize(
    "text",
    [
        "seeds: 2001-99-99",  # ValueError of datetime
        "seeds: !!int x",
        "seeds: !!timestamp x",
        "seeds: 0x_",
        "? [a, b]\n: 1",
        "? {a: b}\n: 1",
        "1: 2",
        "null: 2",
        "extends: [demo]",
        "extends: {a: b}",
        f"extends: {'x' * 5000}",
        'extends: "a\\0.yaml"',
        "extends: demo\ncorpora: 3",
        "extends: demo\ncorpora: {emodb: 3}",
        "extends: demo\ncorpora: {title: {titel: x}}",
        "extends: demo\ncorpora: {1: {}}",
        "extends: demo\ncorpora: {}\naudio: {1: 2}",
        "extends: demo\nmask: &a {threshold: *a}",
        "extends: demo\ncorpora: &a {emodb: *a}",
        "extends: demo\nvariant_of: &a {name: x, corpora: {}, variant_of: *a}",
        "[" * 20_000,
        "{a: " * 20_000,
        "- &a ["
        + "x, " * 9
        + "x]\n"
        + "".join(f"- &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)),
    ],
    ids=lambda text: text[:40],
)
def test_a_profile_that_cannot_be_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SamsgError) as raised:
        samsg.load_profile(tmp_path / "mine.yaml")
    assert len(str(raised.value)) < 12_000


def test_a_few_lines_that_stand_for_billions_are_neither_built_nor_printed(tmp_path: Path) -> None:
    lines = ["a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"]
    lines += [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]" for n in range(9)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "extends: demo", "seeds: *j", "training: {epochs: *j}"]))
    with pytest.raises(SamsgError, match=r"training\.epochs") as raised:
        samsg.load_profile(tmp_path / "bomb.yaml")
    assert len(str(raised.value)) < 20_000


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    "place", ["mask.fill", "training.lr", "views.shift", "audio.seconds", "samsg.reconstruction_weight"]
)
def test_settings_are_numbers(tmp_path: Path, place: str, number: str) -> None:
    group, _, name = place.partition(".")
    (tmp_path / "mine.yaml").write_text(f"extends: demo\n{group}: {{{name}: {number}}}")
    with pytest.raises(SamsgError, match=rf"{place}: Input should be"):
        samsg.load_profile(tmp_path / "mine.yaml")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
groups = st.sampled_from([*samsg.Profile.model_fields, "extends", "x"])


@FUZZED
@given(st.dictionaries(groups, values, max_size=4))
def test_any_profile_is_read_or_refused(tmp_path: Path, content: dict) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.dump({"extends": "demo", **content}), encoding="utf-8")
    try:
        assert samsg.load_profile(tmp_path / "mine.yaml").name == "mine"
    except SamsgError as error:
        assert "mine.yaml" in str(error) or "There is no profile" in str(error)


# Tables


def table(folder: Path, text: str) -> str:
    for name in ("a.wav", "b.wav", "c.wav"):
        (folder / name).touch()
    (folder / "own.csv").write_bytes(text.encode())
    return str(folder / "own.csv")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{'x' * 5000}.wav,glad", "lists 1 files that are not below"),
        ("a.wav\0,glad", "a name that tables cannot keep"),
        ('"b\n.wav",glad', "a name that tables cannot keep"),
        ('b.wav,"gl\rad"', "a name that tables cannot keep"),
        ("/dev/zero,glad", "lies outside"),
        ("../own/../../x.wav,glad", "lies outside"),
        ("out.wav,glad", "lies outside"),
        ("loop.wav,glad", "not below|lies outside"),
        (".,glad", "lies outside|not below"),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_a_line_of_a_table_that_leads_elsewhere_is_refused(tmp_path: Path, line: str, said: str) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "secret.wav").touch()
    (folder / "out.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    with pytest.raises(SamsgError, match=said):
        samsg.read_corpus(table(folder, f"path,emotion\na.wav,calm\n{line}\n"))


def test_paths_that_end_below_the_folder_may_be_absolute_or_linked(tmp_path: Path) -> None:
    (tmp_path / "linked.wav").symlink_to(tmp_path / "c.wav")
    text = f"path,emotion\n{tmp_path / 'a.wav'},calm\nx/../b.wav,glad\nlinked.wav,glad\n"
    (tmp_path / "x").mkdir()
    assert len(samsg.read_corpus(table(tmp_path, text))) == 3


@FUZZED
@given(
    st.lists(
        st.sampled_from([*'",;\n\r\0 ./', "path", "emotion", "a.wav", "b.wav", "..", "calm", "\ufeff", "ä", "part"]),
        max_size=30,
    )
)
def test_any_table_is_read_or_refused(tmp_path: Path, parts: list[str]) -> None:
    for text in ("".join(parts), "path,emotion\na.wav,calm\nb.wav,glad\n" + "".join(parts)):
        try:
            manifest = samsg.read_corpus(table(tmp_path, text))
        except SamsgError:
            continue
        assert all(os.path.realpath(tmp_path / path).startswith(f"{tmp_path}/") for path in manifest["path"])


# Sounds


@pytest.fixture(scope="module")
def in_order() -> list[bytes]:
    made = [wav()]
    for kind in ("FLAC", "OGG", "MP3", "AIFF", "CAF"):
        out = io.BytesIO()
        soundfile.write(out, noise(), 16_000, format=kind)
        made.append(out.getvalue())
    return made


@FUZZED
@given(st.data())
def test_any_bytes_are_heard_or_left_out(tmp_path: Path, in_order: list[bytes], data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(in_order)))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.wav").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    heard = listen(tmp_path / "a.wav", keep=True)
    assert heard.status in STATUSES
    if heard.samples is not None:
        assert np.isfinite(heard.samples).all() and len(heard.samples) == heard.frames


def test_a_small_file_that_announces_hours_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(announced=2 * 16_000 * 601))
    os.truncate(tmp_path / "a.wav", 44 + 2 * 16_000 * 601)  # sparse
    with pytest.raises(SamsgError, match="very long, 601 s, more than 600 s"):
        read_sound(tmp_path / "a.wav")


# Archives


def header(kind: bytes, size: int) -> bytes:
    entry = tarfile.TarInfo("03a01Fa.wav")
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
@pytest.mark.parametrize("first", [True, False])
def test_a_name_that_would_fill_the_memory_is_not_read(tmp_path: Path, kind: bytes, first: bool) -> None:
    """tarfile reads names and notes whole: 14 MB of them became 3 GB."""
    before = b"" if first else header(b"0", 512) + bytes(512)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(before + header(kind, acquire.NOTE + 1) + bytes(2 * acquire.NOTE))
    with pytest.raises(SamsgError, match=r"holds a name or note of 1048577 bytes"):
        acquire.fetch("emodb", tmp_path / "emodb", tmp_path / "bomb.tar.gz")


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sparse.tar").write_bytes(header(b"S", 0) + bytes(1024))
    with pytest.raises(SamsgError, match=r"03a01Fa\.wav, a sparse file"):
        acquire.fetch("emodb", tmp_path / "emodb", tmp_path / "sparse.tar")


# Models


class Bad:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_would_run_something_are_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save({"model": Bad(tmp_path / "ran")}, tmp_path / "deit.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(SamsgError, match=r"deit\.pth'\) could not be loaded"):
        samsg.SpectrogramDeiT(7, "tiny", depth=1, n_frames=101, weights=tmp_path / "deit.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "deit.pth", weights_only=False)  # this is what it would have done
    assert (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> samsg.Run:
    """A run whose first stage is finished."""
    home = tmp_path_factory.mktemp("home")
    lines = ["path,emotion"]
    for number in range(8):
        soundfile.write(home / f"{number}.wav", np.random.default_rng(number).uniform(-0.1, 0.1, 1600), 16_000)
        lines.append(f"{number}.wav,{'ab'[number % 2]}")
    (home / "own.csv").write_text("\n".join(lines))
    changes = {"audio": {"seconds": 0.1, "hop": 100, "n_mels": 16}, "model": {"depth": 1}, "training": {"epochs": 1}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SAMSG_HOME", str(home))
        corpora = {"own": {"reader": str(home / "own.csv"), "root": str(home)}}
        (home / "mine.yaml").write_text(yaml.safe_dump({"extends": "smoke", "corpora": corpora, **changes}))
        made = samsg.open_run(samsg.load_profile(home / "mine.yaml"), "own")
        samsg.prepare(made)
        samsg.train_baseline(made)
        yield made


def changed(state: dict[str, torch.Tensor], content: bytes) -> dict[str, bytes | dict[str, torch.Tensor]]:
    name = "vit.blocks.0.attn.qkv.weight"
    return {
        "empty": b"",
        "text": b"this is no model",
        "cut": content[: len(content) // 2],
        "header of 2^63 bytes": b"\xff" * 7 + b"\x7f" + content[8:],
        "header that is no JSON": content[:8] + b"[" * (len(content) - 8),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "a tensor less": {key: value for key, value in state.items() if key != name},
        "a tensor more": {**state, "more": torch.zeros(1)},
        "another shape": {**state, name: state[name][:, :-1].contiguous()},
    }


CHANGES = ["empty", "text", "cut", "header of 2^63 bytes", "header that is no JSON", "pickle"]
CHANGES += ["a tensor less", "a tensor more", "another shape"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_none_is_refused_with_the_reason(run: samsg.Run, change: str) -> None:
    path = run.folder / "baseline/model.safetensors"
    content = path.read_bytes()
    other = changed(load_file(path), content)[change]
    try:
        if isinstance(other, bytes):
            path.write_bytes(other)
        else:
            save_file(other, path)
        with pytest.raises(
            SamsgError, match=r"(?s)does not hold the model that stage 'baseline' leaves: .*02_baseline"
        ):
            samsg.load_model(run, "baseline")
    finally:
        path.write_bytes(content)


def test_a_checkpoint_that_would_run_something_is_not_run(run: samsg.Run, tmp_path: Path) -> None:
    another = samsg.open_run(run.profile, "own", seed=1)
    folder = partial_of(another.stage_folder("baseline"))
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(another.settings("baseline")))
    torch.save({"model": Bad(tmp_path / "ran")}, folder / "checkpoint.pt")
    with pytest.raises(SamsgError, match=r"(?s)checkpoint\.pt is damaged .*remove"):
        samsg.train_baseline(another)
    assert not (tmp_path / "ran").exists()
