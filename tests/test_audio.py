"""From a sound file to spectrograms: decoding, views, the log-mel front end, and what is kept of each on disk."""

import math
import os
import threading
import time
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sounds import make_hostile, written

from samsg.audio import store as store_module
from samsg.audio.spectrogram import LogMel
from samsg.audio.store import WaveformStore, read_sound, workers, write_spectrograms, write_store
from samsg.audio.views import fit, make_view
from samsg.settings import AudioSettings, SamsgError, ViewSettings

AUDIO = AudioSettings()
RATE = AUDIO.sample_rate
VIEWS = ViewSettings()


def noise(n: int = 64_000, seed: int = 0, level: float = 0.1) -> torch.Tensor:
    return torch.from_numpy(level * np.random.default_rng(seed).standard_normal(n).astype(np.float32))


def tone(frequency: float, seconds: float, rate: int = RATE, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def amplitude_at(samples: np.ndarray, frequency: float, rate: int = RATE) -> tuple[float, float]:
    """The amplitude of a tone by least squares, and the standard deviation of what is left without it."""
    phase = 2 * np.pi * frequency * np.arange(len(samples)) / rate
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    weights = np.linalg.lstsq(basis, samples, rcond=None)[0]
    return float(np.hypot(*weights)), float(np.std(samples - basis @ weights))


# Spectrograms


def test_the_papers_shape():
    spectrogram = LogMel(AUDIO)(noise()[None])
    assert spectrogram.shape == (1, 1, 128, 1001)
    assert spectrogram.dtype == torch.float32


@pytest.mark.parametrize(("hop", "seconds", "n_mels"), [(256, 4.0, 128), (160, 2.0, 64), (300, 1.0, 32)])
def test_other_shapes_are_those_that_the_settings_announce(hop, seconds, n_mels):
    audio = AudioSettings(hop=hop, seconds=seconds, n_mels=n_mels)
    assert LogMel(audio)(noise(audio.n_samples)[None]).shape == (1, 1, n_mels, audio.n_frames)


@pytest.mark.parametrize("kind", ["noise", "tone"])
def test_decibels_are_librosas(kind):
    waveform = noise() if kind == "noise" else torch.from_numpy(tone(1000, 4).astype(np.float32)) + noise(level=1e-3)
    power = librosa.feature.melspectrogram(
        y=waveform.numpy(), sr=16_000, n_fft=1024, win_length=512, hop_length=64, window="hamming", center=True,
        pad_mode="reflect", power=2.0, n_mels=128, htk=True, norm=None, fmin=0, fmax=8000,
    )  # fmt: skip
    expected = 10 * np.log10(np.maximum(power, 1e-10))
    # Two float32 Fourier transforms differ by 0.0005 dB in the quietest cells; a Hann window would by 0.1 dB and more.
    np.testing.assert_allclose(LogMel(AUDIO).decibels(waveform[None])[0].numpy(), expected, rtol=0, atol=0.003)


@pytest.mark.parametrize("frequency", [500, 1000, 4000])
def test_a_tone_lies_in_the_band_of_its_mel_frequency(frequency):
    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)  # Eq. 1

    # 128 triangles need 130 corners from 0 to 8000 Hz, evenly spaced in mel; band b peaks at corner b + 1.
    band = round(mel(frequency) / mel(8000) * 129) - 1
    loudness = LogMel(AUDIO).decibels(torch.from_numpy(tone(frequency, 4).astype(np.float32))[None])[0]
    assert abs(int(loudness[:, 500].argmax()) - band) <= 1  # a bin of 15.6 Hz may fall into the next triangle


@pytest.mark.parametrize("frame", [100, 500, 900])
def test_a_frame_is_centred_on_its_hop(frame):
    click = torch.zeros(1, 64_000)
    click[0, frame * 64] = 1.0
    loudness = LogMel(AUDIO).decibels(click)[0].sum(0)
    assert int(loudness.argmax()) == frame
    # A window of 512 samples reaches 256 samples to either side, 4 hops; beyond them is silence.
    heard = (loudness > loudness.min() + 1).nonzero().flatten()
    assert heard.min() >= frame - 4
    assert heard.max() <= frame + 4


def test_minmax_reaches_exactly_0_and_1_in_every_clip():
    spectrogram = LogMel(AUDIO)(torch.stack([noise(), noise(seed=1, level=1e-3)]))
    assert spectrogram.amin((1, 2, 3)).tolist() == [0.0, 0.0]
    assert spectrogram.amax((1, 2, 3)).tolist() == [1.0, 1.0]


def test_minmax_hears_no_difference_in_loudness():
    # A power of two changes no digit of a float32, so its logarithm moves by a constant; that is rounded, to 1e-5 dB.
    assert torch.allclose(LogMel(AUDIO)(noise()[None]), LogMel(AUDIO)(noise()[None] / 4), rtol=0, atol=1e-6)


def test_standardize_gives_mean_0_and_standard_deviation_one_half():
    spectrogram = LogMel(AudioSettings(scaling="standardize"))(torch.stack([noise(), noise(seed=1, level=1e-3)]))
    # Means of 128 128 float32 numbers near 10 dB.
    np.testing.assert_allclose(spectrogram.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(spectrogram.std((1, 2, 3)), 0.5, atol=1e-5)


@pytest.mark.parametrize("scaling", ["minmax", "standardize"])
@pytest.mark.parametrize("hop", [64, 160, 512])
def test_silence_is_0_throughout(scaling, hop):
    spectrogram = LogMel(AudioSettings(scaling=scaling, hop=hop))(torch.zeros(2, 64_000))
    assert spectrogram.count_nonzero() == 0
    assert spectrogram.isfinite().all()


def test_a_clip_does_not_depend_on_its_batch():
    clips = torch.stack([noise(seed=seed, level=0.1**seed) for seed in range(3)])
    together, log_mel = LogMel(AUDIO)(clips), LogMel(AUDIO)
    for index in range(3):
        # The same operations a clip; a library may add in another order in a larger batch.
        torch.testing.assert_close(log_mel(clips[index : index + 1])[0], together[index], rtol=0, atol=1e-6)


# Views


@pytest.mark.parametrize("view", ["clean", "noise", "shift", "speed"])
@pytest.mark.parametrize("length", [1, 20_000, 64_000, 100_000])
def test_a_view_is_four_seconds_long(view, length):
    assert make_view(noise(length), "clip", view, AUDIO, VIEWS).shape == (64_000,)


@pytest.mark.parametrize("view", ["noise", "shift", "speed"])
def test_a_view_depends_on_clip_view_and_seed_alone(view):
    waveform = noise()
    first = make_view(waveform, "clip", view, AUDIO, VIEWS)
    torch.manual_seed(123)
    assert torch.equal(make_view(waveform, "clip", view, AUDIO, VIEWS), first)
    assert torch.equal(make_view(waveform, "clip", view, AUDIO, ViewSettings(names=("clean", view))), first)
    assert not torch.equal(make_view(waveform, "clip", view, AUDIO, ViewSettings(seed=1)), first)
    assert not torch.equal(make_view(waveform, "another clip", view, AUDIO, VIEWS), first)


@pytest.mark.parametrize("view", ["clean", "noise", "shift", "speed"])
def test_the_recording_itself_is_left_alone(view):
    waveform = noise()
    make_view(waveform, "clip", view, AUDIO, VIEWS)
    assert torch.equal(waveform, noise())


def test_clean_is_the_recording_cut_or_padded_with_zeros():
    long, short = noise(70_000), noise(50_000)
    assert torch.equal(make_view(long, "clip", "clean", AUDIO, VIEWS), long[:64_000])
    padded = make_view(short, "clip", "clean", AUDIO, VIEWS)
    assert torch.equal(padded[:50_000], short)
    assert padded[50_000:].count_nonzero() == 0
    assert torch.equal(fit(short, 10), short[:10])


def test_shift_moves_a_clip_by_at_most_the_limit_and_keeps_what_stays_inside():
    waveform = torch.arange(1, 64_001, dtype=torch.float32)  # each sample says where it was
    moves = []
    for clip in range(60):
        shifted = make_view(waveform, f"clip {clip}", "shift", AUDIO, VIEWS)
        where = int(shifted.nonzero()[0])
        by = where - int(shifted[where] - 1)
        expected = torch.zeros(64_000)
        expected[max(by, 0) : 64_000 + min(by, 0)] = waveform[max(-by, 0) : 64_000 - max(by, 0)]
        assert torch.equal(shifted, expected)
        moves.append(by)
    assert max(map(abs, moves)) <= 6400  # 0.4 s
    # Uniform draws: that 60 of them all miss an outer quarter of the range has probability 0.75^60 = 3e-8.
    assert min(moves) < -3200
    assert max(moves) > 3200


@pytest.mark.parametrize("clip", range(8))
def test_a_shift_longer_than_the_clip_leaves_silence_or_the_rest(clip):
    shifted = make_view(torch.ones(16_000), f"clip {clip}", "shift", AudioSettings(seconds=1), ViewSettings(shift=4))
    assert shifted.shape == (16_000,)
    assert set(shifted.tolist()) <= {0.0, 1.0}


def test_the_noise_view_has_a_signal_to_noise_ratio_within_the_range():
    waveform, ratios = noise(), []
    for clip in range(60):
        added = make_view(waveform, f"clip {clip}", "noise", AUDIO, VIEWS).double() - waveform.double()
        ratios.append(float(10 * torch.log10(waveform.double().square().sum() / added.square().sum())))
    # The sum is rounded to float32, which leaves the added noise 5 digits.
    assert min(ratios) >= 15 - 1e-3
    assert max(ratios) <= 30 + 1e-3
    assert min(ratios) < 18.75  # 60 uniform draws reach both outer quarters
    assert max(ratios) > 26.25


def test_the_noise_is_white_and_has_nothing_to_do_with_the_clip():
    waveform = noise()
    views = ViewSettings(snr=(10, 10))
    added = (make_view(waveform, "clip", "noise", AUDIO, views) - waveform).numpy()
    # Correlations of 64 000 independent numbers have standard deviation 0.004; 5 of them.
    assert abs(np.corrcoef(added, waveform)[0, 1]) < 0.02
    assert max(abs(np.corrcoef(added[lag:], added[:-lag])[0, 1]) for lag in (1, 2, 10)) < 0.02
    # Measured over the clip as it is heard, padding included: 10 dB are a tenth of its power.
    assert np.var(added) == pytest.approx(waveform.numpy().var() / 10, rel=1e-3)


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.25])
def test_speed_changes_duration_and_pitch_by_its_factor(factor):
    waveform = torch.from_numpy(tone(1000, 2).astype(np.float32))
    faster = make_view(waveform, "clip", "speed", AUDIO, ViewSettings(speed=(factor, factor))).numpy()
    length = math.ceil(32_000 / factor)
    assert faster[length - 50 : length].any()
    assert not faster[length:].any()
    # The resampling filter changes a tone far below its edge by less than 0.1 %; at the ends it fades.
    amplitude, rest = amplitude_at(faster[1000 : length - 1000], 1000 * factor)
    assert amplitude == pytest.approx(0.5, rel=2e-3)
    assert rest < 2e-3


def test_speeds_lie_within_the_range_and_fill_it():
    lengths = []
    for clip in range(60):
        view = make_view(torch.ones(32_000), f"clip {clip}", "speed", AUDIO, VIEWS)
        lengths.append(int(view.nonzero().max()) + 1)
    factors = 32_000 / np.array(lengths)
    # Factors come in hundredths and lengths in samples.
    assert factors.min() >= 0.9 - 1e-4
    assert factors.max() <= 1.1 + 1e-4
    assert factors.min() < 0.95  # 60 uniform draws reach both outer quarters
    assert factors.max() > 1.05


def test_a_faster_view_of_a_long_recording_goes_on_where_a_cut_one_would_be_silent():
    waveform = torch.from_numpy(np.concatenate([np.zeros(64_000), tone(1000, 1.5)]).astype(np.float32))
    faster = make_view(waveform, "clip", "speed", AUDIO, ViewSettings(speed=(1.25, 1.25))).numpy()
    # 4 s of silence now take 3.2 s; the last 0.8 s hold the tone from beyond the cut, a fifth higher.
    assert abs(faster[:51_000]).max() < 1e-6
    assert amplitude_at(faster[51_500:], 1250)[0] == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize("view", ["clean", "noise", "shift", "speed"])
def test_silence_stays_silent(view):
    assert make_view(torch.zeros(30_000), "clip", view, AUDIO, VIEWS).tolist() == [0.0] * 64_000


# Sound files


def test_stereo_becomes_the_mean_of_its_channels(tmp_path):
    left, right = noise(8000, 0).numpy(), noise(8000, 1).numpy()
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    assert np.array_equal(read_sound(tmp_path / "a.wav").numpy(), (left + right) / 2)


def test_at_its_own_rate_a_sound_is_read_bit_for_bit(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(8000).numpy(), RATE, subtype="FLOAT")
    sound = read_sound(tmp_path / "a.wav")
    assert sound.dtype == torch.float32
    assert torch.equal(sound, noise(8000))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_duration_frequency_and_amplitude(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1000, 1, rate), rate, subtype="FLOAT")
    sound = read_sound(tmp_path / "a.wav").numpy()
    assert len(sound) == 16_000
    # torchaudio's windowed sinc has a ripple of 0.05 % there, and images of 11 025 Hz leave 0.0002.
    amplitude, rest = amplitude_at(sound[1000:-1000], 1000)
    assert amplitude == pytest.approx(0.5, rel=1e-3)
    assert rest < 5e-4


def test_what_the_new_rate_cannot_hold_is_removed_and_not_folded_down(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(10_000, 1, 44_100), 44_100)
    # 10 kHz would fold to 6 kHz; the filter of width 6 leaves 0.5 %, -45 dB.
    assert read_sound(tmp_path / "a.wav")[1000:-1000].abs().max() < 0.005


@pytest.mark.parametrize(
    ("name", "subtype", "error"),
    [
        ("a.wav", "PCM_U8", 2**-7),  # steps of the format, of which rounding takes half and some encoders all
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 2**-24),  # float32 holds 24 bits
        ("a.wav", "FLOAT", 2**-24),
        ("a.wav", "DOUBLE", 2**-24),
        ("a.WAV", "PCM_16", 2**-15),
        ("a.flac", "PCM_16", 2**-15),
        ("a.flac", "PCM_24", 2**-23),
    ],
)
def test_lossless_formats_are_read_to_their_last_step(tmp_path, name, subtype, error):
    expected = tone(440, 0.5)
    soundfile.write(tmp_path / name, expected, RATE, subtype=subtype)
    np.testing.assert_allclose(read_sound(tmp_path / name).numpy(), expected, rtol=0, atol=error)


@pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")])
def test_lossy_formats_keep_a_tone(tmp_path, name, subtype):
    soundfile.write(tmp_path / name, tone(1000, 2), RATE, subtype=subtype)
    sound = read_sound(tmp_path / name).numpy()
    amplitude, rest = amplitude_at(sound[4000:28_000], 1000)
    # Encoders at their default quality are off by up to 3 %.
    assert amplitude == pytest.approx(0.5, rel=0.05)
    assert rest < 0.02


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.wav", b"this is no sound"),
        ("pointer.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 72862\n"),
        ("nothing.wav", b""),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVE"),
        ("bytes.raw", bytes(100)),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SamsgError, match=name):
        read_sound(tmp_path / name)


def test_missing_and_empty_sounds_are_named(tmp_path):
    with pytest.raises(SamsgError, match=r"nowhere\.wav cannot be read"):
        read_sound(tmp_path / "nowhere.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(SamsgError, match=r"empty\.wav cannot be read .*: empty, a header without samples"):
        read_sound(tmp_path / "empty.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused_by_name(tmp_path, value):
    soundfile.write(tmp_path / "odd.wav", np.array([0.1, value, 0.1]), RATE, subtype="FLOAT")
    with pytest.raises(SamsgError, match=r"odd\.wav cannot be read .*: not numbers, samples are NaN"):
        read_sound(tmp_path / "odd.wav")


# What is kept


def sounds(folder: Path) -> pd.DataFrame:
    """Three sounds of different rate, length and channels, with their manifest."""
    soundfile.write(folder / "one.wav", noise(8000).numpy(), RATE, subtype="FLOAT")
    soundfile.write(folder / "two.flac", np.stack([tone(440, 0.5, 44_100), tone(550, 0.5, 44_100)], 1), 44_100)
    soundfile.write(folder / "three.wav", noise(70_000, 1).numpy(), RATE)
    paths = ["one.wav", "two.flac", "three.wav"]
    return pd.DataFrame(
        {
            "clip": ["1", "02", "NA"],
            "path": paths,
            "corpus": "own",
            "speaker": ["03", "", "nan"],
            "sentence": ["001", "", ""],
            "emotion": ["01", "02", "mixed/other"],
        }
    )


def test_what_is_stored_is_what_was_read_bit_for_bit(tmp_path):
    manifest = sounds(tmp_path)
    write_store(manifest, tmp_path, tmp_path, AUDIO)
    store = WaveformStore(tmp_path)
    assert len(store) == 3
    for index, path in enumerate(manifest["path"]):
        assert torch.equal(store[index], read_sound(tmp_path / path))
    assert store.clips["samples"].tolist() == [8000, 8000, 70_000]
    assert store.clips["start"].tolist() == [0, 8000, 16_000]


@pytest.mark.parametrize("emotions", [["01", "02", "mixed/other"], ["01", "02", "03"], ["True", "False", "True"]])
def test_the_manifest_comes_back_as_it_was(tmp_path, emotions):
    manifest = sounds(tmp_path).assign(emotion=emotions, clip=["1", "02", "03"])
    write_store(manifest, tmp_path, tmp_path, AUDIO)
    kept = WaveformStore(tmp_path).clips[list(manifest.columns)]
    assert kept.to_dict("list") == manifest.to_dict("list")


def test_changing_a_clip_in_memory_leaves_the_store_alone(tmp_path):
    write_store(sounds(tmp_path), tmp_path, tmp_path, AUDIO)
    store = WaveformStore(tmp_path)
    before = store[0].clone()
    store[0].zero_()
    assert torch.equal(store[0], before)


def many(folder: Path, count: int = 200) -> pd.DataFrame:
    """More sounds than a batch holds, every third at a rate of its own, each of other content and length."""
    for number in range(count):
        rate = 8000 if number % 3 == 0 else RATE
        soundfile.write(folder / f"{number}.wav", noise(3000 + number, number).numpy(), rate, subtype="FLOAT")
    names = [str(number) for number in range(count)]
    manifest = pd.DataFrame({"clip": names, "path": [f"{name}.wav" for name in names], "emotion": "joy"})
    return manifest.assign(corpus="own", speaker="", sentence="")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_batches_follow_each_other_without_a_gap(tmp_path):
    manifest, folder = many(tmp_path), tmp_path / "store"
    folder.mkdir()
    write_store(manifest, tmp_path, folder, AUDIO)
    store = WaveformStore(folder)
    assert len(store) == 200
    for index in (0, 1, 63, 64, 65, 127, 128, 199):
        assert torch.equal(store[index], read_sound(tmp_path / f"{index}.wav"))


@pytest.mark.parametrize("torn", [0, 1, 3], ids=["whole", "a note is cut off", "samples without a note"])
def test_an_interrupted_store_goes_on_and_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, torn):
    manifest = many(tmp_path)
    for name in ("whole", "interrupted"):
        (tmp_path / name).mkdir()
    write_store(manifest, tmp_path, tmp_path / "whole", AUDIO)

    heard = []

    def listen(path, **options):
        heard.append(path)
        if len(heard) == 150:  # in the third batch
            raise KeyboardInterrupt
        return verify_listen(path, **options)

    verify_listen = store_module.listen
    monkeypatch.setattr(store_module, "listen", listen)
    with pytest.raises(KeyboardInterrupt):
        write_store(manifest, tmp_path, tmp_path / "interrupted", AUDIO)
    journal, samples = tmp_path / "interrupted/journal.jsonl", tmp_path / "interrupted/samples.f32"
    if torn == 1:
        journal.write_bytes(journal.read_bytes()[:-20])
    if torn == 3:
        with samples.open("ab") as file:
            file.write(bytes(12_345))
    before = len(heard)
    write_store(manifest, tmp_path, tmp_path / "interrupted", AUDIO)
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "whole")
    assert len(heard) - before == (200 - 64 if torn == 1 else 200 - 128)  # whole batches are not read again


def test_an_interrupted_store_does_not_trust_files_that_changed_meanwhile(tmp_path, monkeypatch):
    manifest, folder = many(tmp_path, 100), tmp_path / "store"
    folder.mkdir()
    write_store(manifest, tmp_path, folder, AUDIO)
    monkeypatch.setattr(Path, "unlink", lambda path, **_: None)  # as if it had ended just before
    write_store(manifest, tmp_path, folder, AUDIO)
    assert (folder / "journal.jsonl").is_file()
    monkeypatch.undo()
    soundfile.write(tmp_path / "70.wav", noise(3070, 999).numpy(), RATE, subtype="FLOAT")
    write_store(manifest, tmp_path, folder, AUDIO)
    assert torch.equal(WaveformStore(folder)[70], noise(3070, 999))


def test_what_cannot_be_used_is_left_out_with_the_reason_and_the_rest_is_kept(tmp_path):
    expected = make_hostile(tmp_path / "own")
    for name, samples in {
        "good.wav": noise().numpy(),
        "clipped.wav": np.clip(50 * noise().numpy(), -1, 1),
        "offset.wav": noise().numpy() + 0.3,
        "gr\u00fc\u00dfe an/8 bit stereo.wav": np.stack([noise().numpy()] * 2, 1),
    }.items():
        written(tmp_path / "own" / name, samples, subtype="PCM_U8" if "8 bit" in name else "PCM_16")
    paths = [*expected, "good.wav", "clipped.wav", "offset.wav", "gr\u00fc\u00dfe an/8 bit stereo.wav"]
    manifest = pd.DataFrame({"clip": paths, "path": paths, "emotion": "mixed/other"})
    (tmp_path / "store").mkdir()
    write_store(manifest, tmp_path / "own", tmp_path / "store", AUDIO)
    store = WaveformStore(tmp_path / "store")
    kept = ["truncated.wav", "3 hours, says its header.wav", *paths[len(expected) :]]
    assert list(store.clips["path"]) == kept
    assert (store.clips["samples"] > 0).all()
    reasons = store.left_out.set_index("path")["left_out"]
    assert set(reasons.index) == set(expected) - set(kept)
    for name, reason in reasons.items():
        assert reason.startswith(f"{expected[name][0]}: ") and expected[name][1] in reason
    for index, path in enumerate(kept):
        assert torch.equal(store[index], read_sound(tmp_path / "own" / path))
        assert store[index].isfinite().all()


def test_a_corpus_without_any_sound_says_so(tmp_path):
    manifest = sounds(tmp_path)
    for path in manifest["path"]:
        (tmp_path / path).write_bytes(b"this is no sound")
    with pytest.raises(
        SamsgError, match=r"No sound in .* can be used; the first: unreadable: text: 'this is no sound'"
    ):
        write_store(manifest, tmp_path, tmp_path, AUDIO)


def test_a_changed_file_is_noticed_and_a_touched_one_is_not(tmp_path):
    manifest = sounds(tmp_path)
    (tmp_path / "three.wav").write_bytes(b"this is no sound")
    (tmp_path / "store").mkdir()
    write_store(manifest, tmp_path, tmp_path / "store", AUDIO)
    store = WaveformStore(tmp_path / "store")

    def changed(now: pd.DataFrame = manifest) -> list[str]:
        return store.changed(now, tmp_path, RATE)

    assert changed() == []
    for path in manifest["path"]:
        os.utime(tmp_path / path, (1, 1))
    assert changed() == []
    assert changed(manifest[1:]) == ["one.wav"]
    assert changed(manifest.assign(emotion=["01", "03", "mixed/other"])) == ["two.flac"]
    assert changed(manifest.assign(part="train")) == sorted(manifest["path"])
    soundfile.write(tmp_path / "one.wav", -noise(8000).numpy(), RATE, subtype="FLOAT")  # of the same size
    assert changed() == ["one.wav"]
    soundfile.write(tmp_path / "three.wav", noise(100_000).numpy(), RATE)  # mended
    assert changed() == ["one.wav", "three.wav"]
    (tmp_path / "two.flac").unlink()
    assert changed() == ["one.wav", "two.flac", "three.wav"]


def test_work_is_spread_over_threads_of_which_each_computes_alone():
    def slow(item: int) -> tuple[int, int]:
        time.sleep(0.02)
        return torch.get_num_threads(), threading.get_ident()

    torch.set_num_threads(3)
    try:
        with workers() as pool:
            threads, names = zip(*pool.map(slow, range(8)), strict=True)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert set(threads) == {1}
    assert 1 < len(set(names)) <= 3


def test_interrupted_spectrograms_go_on_and_end_as_if_nothing_had_happened(tmp_path, monkeypatch):
    audio = AudioSettings(hop=640)
    for name in ("store", "whole", "interrupted"):
        (tmp_path / name).mkdir()
    write_store(many(tmp_path, 80), tmp_path, tmp_path / "store", audio)
    store = WaveformStore(tmp_path / "store")
    write_spectrograms(store, tmp_path / "whole", audio, VIEWS)
    made = []

    def view(*arguments):
        made.append(arguments)
        if len(made) == 4 * 70:
            raise KeyboardInterrupt
        return make_view(*arguments)

    monkeypatch.setattr(store_module, "make_view", view)
    with pytest.raises(KeyboardInterrupt):
        write_spectrograms(store, tmp_path / "interrupted", audio, VIEWS)
    before = len(made)
    write_spectrograms(store, tmp_path / "interrupted", audio, VIEWS)
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "whole")
    assert 40 <= len(made) - before <= 4 * 17  # 64 clips at least were whole


def test_the_spectrograms_that_are_kept_are_those_of_the_views_in_half_precision(tmp_path):
    audio, manifest = AudioSettings(hop=640), sounds(tmp_path)
    write_store(manifest, tmp_path, tmp_path, audio)
    store = WaveformStore(tmp_path)
    write_spectrograms(store, tmp_path, audio, VIEWS)
    kept = np.load(tmp_path / "views.npy")
    assert kept.shape == (4, 3, 128, 101)
    assert kept.dtype == np.float16
    for row, view in enumerate(VIEWS.names):
        for index, clip in enumerate(manifest["clip"]):
            exact = LogMel(audio)(make_view(store[index], clip, view, audio, VIEWS)[None])[0, 0].numpy()
            # Half precision has steps of 2^-11 just below 1, of which rounding takes half; 1e-6 for the batch.
            np.testing.assert_allclose(kept[row, index].astype(np.float32), exact, rtol=0, atol=2**-12 + 1e-6)
    assert kept.min((2, 3)).tolist() == [[0.0] * 3] * 4
    assert kept.max((2, 3)).tolist() == [[1.0] * 3] * 4
