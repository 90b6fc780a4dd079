"""Manifests: what the files' names say, in every layout a corpus comes in, and what is refused with which words."""

from pathlib import Path

import pytest

from samsg.corpora.catalogue import COLUMNS, GRAMMARS, emotions_of, parse_path, read_corpus
from samsg.settings import SamsgError

# One clip of each emotion, as the corpora name them.
EMODB = ["03a01Wa.wav", "03a01Lb.wav", "08a02Ec.wav", "08b01Aa.wav", "09b10Fd.wav", "10a05Ta.wav", "16b03Nc.wav"]
EMODB_EMOTIONS = ["anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral"]
SAVEE = ["DC_a01.wav", "DC_d04.wav", "JE_f15.wav", "JE_h02.wav", "JK_n30.wav", "KL_sa03.wav", "KL_su11.wav"]
CREMA_D = ["1001_DFA_ANG_XX.wav", "1001_IEO_DIS_HI.wav", "1002_IEO_FEA_LO.wav", "1002_IEO_HAP_MD.wav",
           "1003_TAI_NEU_XX.wav", "1091_WSI_SAD_XX.wav"]  # fmt: skip


def touched(root: Path, *files: str) -> Path:
    """A folder with these files, empty: reading a manifest opens none of them."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def listed(root: Path, text: str, *files: str, encoding: str = "utf-8") -> str:
    """The path of a CSV corpus beside its files."""
    touched(root, *files)
    (root / "own.csv").write_bytes(text.encode(encoding))
    return str(root / "own.csv")


# The official files, by their names


def test_all_8457_official_names_are_understood(official):
    assert sum(len(manifest) for manifest in official.values()) == 8457
    assert {corpus: len(manifest) for corpus, manifest in official.items()} == {
        "savee": 480,
        "emodb": 535,
        "crema_d": 7442,
    }
    for manifest in official.values():
        assert manifest.notna().all(axis=None)
        assert manifest["clip"].is_unique


@pytest.mark.parametrize(
    ("corpus", "counts"),
    [
        ("savee", {"anger": 60, "disgust": 60, "fear": 60, "happiness": 60, "neutral": 120, "sadness": 60,
                   "surprise": 60}),
        ("emodb", {"anger": 127, "boredom": 81, "disgust": 46, "fear": 69, "happiness": 71, "neutral": 79,
                   "sadness": 62}),
        ("crema_d", {"anger": 1271, "disgust": 1271, "fear": 1271, "happiness": 1271, "neutral": 1087,
                     "sadness": 1271}),
    ],
)  # fmt: skip
def test_clips_of_each_emotion_are_as_published(official, corpus, counts):
    assert official[corpus]["emotion"].value_counts().to_dict() == counts
    assert emotions_of(official[corpus]) == sorted(counts)


def test_clips_of_each_speaker_are_as_published(official):
    assert official["savee"]["speaker"].value_counts().to_dict() == dict.fromkeys(["DC", "JE", "JK", "KL"], 120)
    assert official["emodb"]["speaker"].value_counts().to_dict() == {
        "03": 49, "08": 58, "09": 43, "10": 38, "11": 55, "12": 35, "13": 61, "14": 69, "15": 56, "16": 71,
    }  # fmt: skip
    # 91 actors: 11 sentences in 6 emotions and IEO in neutral and 5 emotions at 3 levels, 82; 5 actors lack a few.
    counts = official["crema_d"]["speaker"].value_counts().to_dict()
    assert sorted(counts) == [str(actor) for actor in range(1001, 1092)]
    short = {"1002": 81, "1008": 76, "1009": 76, "1019": 76, "1076": 81}
    assert counts == dict.fromkeys(counts, 82) | short


def test_clips_of_each_sentence_are_as_published(official):
    savee = official["savee"]
    common = savee[savee["sentence"].isin(["01", "02", "03"])]
    assert common.groupby("sentence")["emotion"].nunique().tolist() == [7, 7, 7]
    assert common["sentence"].value_counts().tolist() == [28, 28, 28]  # 4 speakers x 7 emotions
    own = savee.drop(common.index)
    assert own.groupby("sentence")["emotion"].nunique().eq(1).all()
    assert own["sentence"].nunique() == 6 * 12 + 27  # 15 in each emotion and 30 in neutral, less the 3 common ones
    assert own["sentence"].value_counts().eq(4).all()  # one a speaker
    assert official["emodb"]["sentence"].value_counts().to_dict() == {
        "a01": 49, "a02": 60, "a04": 51, "a05": 62, "a07": 55, "b01": 51, "b02": 51, "b03": 52, "b09": 52, "b10": 52,
    }  # fmt: skip
    crema_d = official["crema_d"]["sentence"].value_counts().to_dict()
    assert len(crema_d) == 12
    assert crema_d["IEO"] == 91 * 16
    assert max(count for sentence, count in crema_d.items() if sentence != "IEO") == 91 * 6


@pytest.mark.parametrize(
    ("corpus", "path", "expected"),
    [
        ("savee", "AudioData/DC/a01.wav", ("DC_a01", "DC", "01", "anger")),
        ("savee", "DC_a01.wav", ("DC_a01", "DC", "01", "anger")),
        ("savee", "KL/sa03.wav", ("KL_sa03", "KL", "03", "sadness")),  # sa, not a
        ("savee", "KL_su04.wav", ("KL_su04", "KL", "su04", "surprise")),
        ("emodb", "wav/03a01Fa.wav", ("03a01Fa", "03", "a01", "happiness")),
        ("emodb", "16b10Td.wav", ("16b10Td", "16", "b10", "sadness")),
        ("crema_d", "AudioWAV/1001_DFA_ANG_XX.wav", ("1001_DFA_ANG_XX", "1001", "DFA", "anger")),
        ("crema_d", "1040_ITH_SAD_X.wav", ("1040_ITH_SAD_X", "1040", "ITH", "sadness")),  # one X in some copies
    ],
)
def test_a_name_is_taken_apart(corpus, path, expected):
    assert tuple(parse_path(path, corpus).values()) == expected


@pytest.mark.parametrize(
    ("corpus", "path"),
    [
        ("savee", "a01.wav"),  # whose?
        ("savee", "XX_a01.wav"),
        ("savee", "DC_b01.wav"),
        ("savee", "ADC_a01.wav"),
        ("savee", "DC_a01.wav.txt"),
        ("emodb", "03a01Xa.wav"),
        ("emodb", "103a01Fa.wav"),
        ("emodb", "03a01Fa.mp3"),
        ("crema_d", "1001_DFA_SUR_XX.wav"),
        ("crema_d", "2001_DFA_ANG_XX.wav"),
        ("crema_d", "1001_DFA_ANG.wav"),
    ],
)
def test_other_names_are_not_guessed_at(corpus, path):
    assert parse_path(path, corpus) is None


# From folders


def test_a_manifest_is_sorted_and_its_paths_are_relative(tmp_path):
    manifest = read_corpus("emodb", touched(tmp_path, *(f"wav/{file}" for file in reversed(EMODB))))
    assert list(manifest.columns) == COLUMNS == ["clip", "path", "corpus", "speaker", "sentence", "emotion"]
    assert manifest["clip"].tolist() == sorted(Path(file).stem for file in EMODB)
    assert all((tmp_path / path).is_file() and not Path(path).is_absolute() for path in manifest["path"])
    assert dict(zip(manifest["path"], manifest["emotion"], strict=True)) == {
        f"wav/{file}": emotion for file, emotion in zip(EMODB, EMODB_EMOTIONS, strict=True)
    }
    assert set(manifest["corpus"]) == {"emodb"}


@pytest.mark.parametrize("layout", ["{}_{}", "AudioData/{}/{}", "{}/{}"])
def test_savee_is_read_in_every_layout_and_means_the_same(tmp_path, layout):
    files = [layout.format(*file.split("_")) for file in SAVEE]
    manifest = read_corpus("savee", touched(tmp_path, *files)).drop(columns="path")
    flat = read_corpus("savee", touched(tmp_path / "flat", *SAVEE)).drop(columns="path")
    assert manifest.equals(flat)
    assert manifest["clip"].tolist() == sorted(Path(file).stem for file in SAVEE)


def test_one_speakers_folder_alone_tells_the_speaker(tmp_path):
    root = touched(tmp_path / "DC", "a01.wav", "d01.wav", "f01.wav", "h01.wav", "n01.wav", "sa01.wav", "su01.wav")
    assert set(read_corpus("savee", root)["speaker"]) == {"DC"}


def test_nested_folders_are_searched(tmp_path):
    root = touched(tmp_path, *(f"disc/{number}/AudioWAV/{file}" for number, file in enumerate(CREMA_D)))
    assert len(read_corpus("crema_d", root)) == 6


@pytest.mark.parametrize(("corpus", "files"), [("savee", SAVEE), ("emodb", EMODB), ("crema_d", CREMA_D)])
def test_upper_case_names_mean_the_same(tmp_path, corpus, files):
    shouted = read_corpus(corpus, touched(tmp_path / "upper", *(file.upper() for file in files)))
    plain = read_corpus(corpus, touched(tmp_path / "plain", *files))
    columns = ["speaker", "sentence", "emotion"]
    assert shouted.assign(clip=shouted["clip"].str.lower()).sort_values("clip")[columns].to_numpy().tolist() == (
        plain.assign(clip=plain["clip"].str.lower()).sort_values("clip")[columns].to_numpy().tolist()
    )


def test_what_macos_leaves_behind_is_ignored(tmp_path):
    litter = ["._03a01Wa.wav", "__MACOSX/wav/._03a01Wa.wav", "__MACOSX/03a01Wa.wav", ".DS_Store", "notes.txt"]
    assert len(read_corpus("emodb", touched(tmp_path, *EMODB, *litter))) == 7


@pytest.mark.parametrize("corpus", sorted(GRAMMARS))
def test_a_missing_folder_is_named_with_what_to_do(tmp_path, corpus):
    with pytest.raises(SamsgError, match=r"nowhere, which is no folder\. Put its files there.*data/README\.md"):
        read_corpus(corpus, tmp_path / "nowhere")


@pytest.mark.parametrize("corpus", sorted(GRAMMARS))
def test_an_empty_folder_is_named_with_the_expected_names(tmp_path, corpus):
    with pytest.raises(SamsgError, match=r"found no \.wav files; expected .*\.wav"):
        read_corpus(corpus, tmp_path)


def test_another_corpus_folder_is_recognised_by_its_names(tmp_path):
    with pytest.raises(SamsgError, match=r"found 7 \.wav files with other names, such as 03a01Lb\.wav; expected Audio"):
        read_corpus("savee", touched(tmp_path, *EMODB))


def test_a_missing_class_is_named(tmp_path):
    with pytest.raises(SamsgError, match="has 6 clips but none of boredom; the copy is incomplete"):
        read_corpus("emodb", touched(tmp_path, *(file for file in EMODB if "L" not in file)))


@pytest.mark.parametrize("second", ["copy/03a01Wa.wav", "COPY/03A01WA.WAV"])
def test_two_copies_of_a_clip_are_refused_by_name(tmp_path, second):
    with pytest.raises(SamsgError, match=rf"holds 1 clips more than once, such as .*{second}"):
        read_corpus("emodb", touched(tmp_path, *EMODB, second))


def test_both_layouts_of_savee_at_once_are_refused(tmp_path):
    with pytest.raises(SamsgError, match=r"more than once, such as AudioData/DC/a01\.wav and DC_a01\.wav"):
        read_corpus("savee", touched(tmp_path, *SAVEE, "AudioData/DC/a01.wav"))


def test_an_unknown_corpus_names_the_nearest():
    with pytest.raises(SamsgError, match=r"no corpus 'emdob'; known: .*folders, savee\. Did you mean 'emodb'\?"):
        read_corpus("emdob")


# From a CSV


def test_a_csv_is_a_corpus(tmp_path):
    text = "path,emotion,speaker,sentence,note\nb/2.wav,calm,07,s1,x\na/1.wav,mixed/other,03,s2,y\n"
    manifest = read_corpus(listed(tmp_path, text, "a/1.wav", "b/2.wav"))
    assert manifest.to_dict("records") == [
        {"clip": "a/1.wav", "path": "a/1.wav", "corpus": "own", "speaker": "03", "sentence": "s2",
         "emotion": "mixed/other"},
        {"clip": "b/2.wav", "path": "b/2.wav", "corpus": "own", "speaker": "07", "sentence": "s1", "emotion": "calm"},
    ]  # fmt: skip
    assert emotions_of(manifest) == ["calm", "mixed/other"]


def test_speaker_and_sentence_may_be_unknown(tmp_path):
    manifest = read_corpus(listed(tmp_path, "emotion,path\ncalm,1.wav\nglad,2.wav\n", "1.wav", "2.wav"))
    assert manifest["speaker"].tolist() == manifest["sentence"].tolist() == ["", ""]


def test_the_sounds_may_lie_elsewhere(tmp_path):
    touched(tmp_path / "sounds", "1.wav", "2.wav")
    path = listed(tmp_path, "path,emotion\n1.wav,calm\n2.wav,glad\n")
    assert read_corpus(path, tmp_path / "sounds")["path"].tolist() == ["1.wav", "2.wav"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_umlauts_spaces_and_a_byte_order_mark_are_read(tmp_path, encoding):
    text = "path,emotion\nGefühle/Ärger 1.wav,Ärger\nGefühle/Glück 1.wav,großes Glück\n"
    path = listed(tmp_path, text, "Gefühle/Ärger 1.wav", "Gefühle/Glück 1.wav", encoding=encoding)
    manifest = read_corpus(path)
    assert manifest["path"].tolist() == ["Gefühle/Glück 1.wav", "Gefühle/Ärger 1.wav"]
    assert manifest["emotion"].tolist() == ["großes Glück", "Ärger"]


def test_numbers_are_names_too(tmp_path):
    manifest = read_corpus(listed(tmp_path, "path,emotion,speaker\n1.wav,01,001\n2.wav,02,NA\n", "1.wav", "2.wav"))
    assert manifest["emotion"].tolist() == ["01", "02"]
    assert manifest["speaker"].tolist() == ["001", "NA"]


def test_spaces_around_a_name_do_not_make_a_class_of_their_own(tmp_path):
    text = "path, emotion\n1.wav, calm\n2.wav,calm \n3.wav,glad\n"
    assert emotions_of(read_corpus(listed(tmp_path, text, "1.wav", "2.wav", "3.wav"))) == ["calm", "glad"]


def test_a_comma_at_the_end_of_each_line_is_harmless(tmp_path):
    manifest = read_corpus(listed(tmp_path, "path,emotion\n1.wav,calm,\n2.wav,glad,\n", "1.wav", "2.wav"))
    assert manifest[["path", "emotion"]].to_numpy().tolist() == [["1.wav", "calm"], ["2.wav", "glad"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,emotion\n1.wav,calm\n", "has columns file, emotion; expected path and emotion .*; path is missing"),
        ("path;emotion\n1.wav;calm\n", "has columns path;emotion; .*path and emotion is missing"),
        ("", "cannot be read as CSV"),
        ("path,emotion\n1.wav,calm\n2.wav, \n", "line 3: emotion is empty"),
        ("path,emotion\n1.wav,calm\n,glad\n", "line 3: path is empty"),
        ("path,emotion\n1.wav,calm\n2.wav\n", "line 3: emotion is empty"),
        ("path,emotion\n1.wav,calm\n2.wav,calm\n", "has 1 emotions; a classifier needs two or more"),
        ("path,emotion\n", "has 0 emotions"),
        ("path,emotion\n1.wav,calm\n3.wav,glad\n", r"lists 1 files that are not below .*, such as 3\.wav"),
        ("path,emotion\n1.wav,calm\n1.wav,glad\n2.wav,glad\n", r"more than once, such as 1\.wav"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path, text, words):
    with pytest.raises(SamsgError, match=words):
        read_corpus(listed(tmp_path, text, "1.wav", "2.wav"))


def test_a_csv_in_another_encoding_is_named(tmp_path):
    path = listed(tmp_path, "path,emotion\n1.wav,Ärger\n2.wav,glad\n", "1.wav", "2.wav", encoding="latin-1")
    with pytest.raises(SamsgError, match=r"own\.csv cannot be read as CSV"):
        read_corpus(path)


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(SamsgError, match=r"nowhere\.csv, which is no file"):
        read_corpus(str(tmp_path / "nowhere.csv"))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name in ("mixed other/eins ä.wav", "calm/deep/zwei.FLAC", "calm/drei.ogg", "calm/._drei.ogg", "calm/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    manifest = read_corpus("folders", tmp_path)
    assert dict(zip(manifest["path"], manifest["emotion"], strict=True)) == {
        "calm/deep/zwei.FLAC": "calm",
        "calm/drei.ogg": "calm",
        "mixed other/eins ä.wav": "mixed other",
    }
    with pytest.raises(SamsgError, match="one folder for each class"):
        read_corpus("folders", tmp_path / "calm")


@pytest.mark.parametrize("outside", ["../secret.wav", "/etc/hostname"])
def test_a_csv_lists_files_below_its_folder_only(tmp_path: Path, outside: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "secret.wav").touch()
    (tmp_path / "corpus/one.wav").touch()
    (tmp_path / "corpus/list.csv").write_text(f"path,emotion\none.wav,calm\n{outside},anger\n")
    with pytest.raises(SamsgError, match="lies outside"):
        read_corpus(str(tmp_path / "corpus/list.csv"))
