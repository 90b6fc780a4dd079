"""The rehearsal of the paper profile runs, at a small share of two corpora."""

import importlib
from pathlib import Path

import pytest

import samsg
from samsg.settings import REPOSITORY, CorpusSettings
from samsg.stages import STAGES


def test_the_rehearsal_times_every_stage_of_every_corpus(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    rehearsal = importlib.import_module("benchmarks.rehearsal")
    corpora = {name: CorpusSettings(root=str(home / name)) for name in ("savee", "emodb")}
    smoke = samsg.load_profile("smoke", model={"weights": "random"}, training={"epochs": 1}, samsg={"epochs": None})
    table = rehearsal.rehearse(smoke.model_copy(update={"corpora": corpora}), 0.06)  # 3 clips of the rarest emotion
    assert table[["corpus", "stage"]].to_numpy().tolist() == [[name, stage] for name in corpora for stage in STAGES]
    factor = table["stage"].isin(["baseline", "samsg", "probe"]).map({True: 25, False: 1})
    assert (table["seconds"] > 0).all() and table["at 25 epochs"].tolist() == (factor * table["seconds"]).tolist()
