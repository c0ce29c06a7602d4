"""Memory that runs out in decoding: batches are halved, what never fits is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from adaptations import make_adaptation, waves

import espnet_hra
from espnet_hra import cli
from espnet_hra.errors import NoRoomError

#: A limit of the machine itself, lowered step by step under decoding; what the smallest
#: ones leave cannot hold one utterance.
LIMITED = """
import json, logging, resource, sys
from pathlib import Path

import numpy as np
import torch

import espnet_hra
from espnet_hra.errors import NoRoomError

model, kind = sys.argv[1:]
torch.set_num_threads(1)
options = {"ctc_weight": 1.0, "beam_size": 2}
if kind == "greedy":
    options = {"ctc_greedy": True}
speech2text = espnet_hra.Speech2Text.from_pretrained(model, **options)
rng = np.random.default_rng(0)
seconds = 16 if kind == "greedy" else 6
wave = rng.normal(0, 0.1, seconds * 16000).astype(np.float32)
batch = [wave] * 6
tasks = ["female", "it.carlo"] * 3 if kind != "beam" else "female"


def texts():
    return [nbest[0][0] for nbest in speech2text(batch, task=tasks)]


halved = []


class Count(logging.Handler):
    def emit(self, record):
        if "memory ran out with" in record.getMessage():
            halved.append(record.getMessage())


logging.getLogger("espnet_hra").addHandler(Count())
expected = texts()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
found = []
room = 2**27
while room > 2**18 and "none" not in found:
    used = int(Path("/proc/self/statm").read_text().split()[0])
    used *= resource.getpagesize()
    halved.clear()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        same = texts() == expected
        outcome = ("halved" if halved else "whole") if same else "wrong"
    except NoRoomError as e:
        assert e.samples == len(wave) and (e.index, e.size) == (0, 6), vars(e)
        outcome = "none"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    found.append(outcome)
    room = int(room * 0.5)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def model(base, tmp_path_factory) -> Path:
    """An adaptation; not to be changed."""
    return make_adaptation(tmp_path_factory.mktemp("adapted") / "exp", base)


@pytest.mark.parametrize(
    "kind",
    [
        "greedy",
        pytest.param("beam", marks=pytest.mark.slow),
        pytest.param("beam of mixed tasks", marks=pytest.mark.slow),
    ],
)
def test_under_a_limit_of_the_system_batches_are_halved(kind, model):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, model, kind],
        # All that is freed goes back to the system, and counts no more.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found[0] == "whole" and "halved" in found, found
    assert set(found) <= {"whole", "halved", "none"}, found


def limited(monkeypatch, speech2text, most: int) -> list[int]:
    """Let memory end at so many samples of a batch; the sizes that were tried."""
    encode, tried = speech2text._encode, []

    def encode_some(batch):
        tried.append(len(batch))
        if sum(map(len, batch)) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return encode(batch)

    monkeypatch.setattr(speech2text, "_encode", encode_some)
    return tried


def test_the_utterance_is_told_by_its_place_in_the_batch(model, an4, monkeypatch):
    speech2text = espnet_hra.Speech2Text.from_pretrained(str(model), ctc_greedy=True)
    wave = next(iter(waves(an4["test"]).values()))
    long = np.concatenate([wave] * 3)
    tried = limited(monkeypatch, speech2text, len(wave))
    batch = [wave, wave, wave, wave, long]
    with pytest.raises(
        NoRoomError, match=f"of {len(long):,} samples does not fit"
    ) as e:
        speech2text(batch, task=["female", "it.carlo"] * 2 + ["female"])
    assert (e.value.index, e.value.size) == (4, 5)
    assert tried == [5, 3, 2, 1, 1, 1, 2, 1, 1]
    assert str(e.value.of("abcde")).startswith(
        f"e ({len(long):,} samples) does not fit"
    )
    assert str(e.value.of("ab")).startswith("one of a, b (")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_search_of_one_utterance_names_it_too(error, model, an4, monkeypatch):
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_weight=1.0, beam_size=2, task="female"
    )
    wave = next(iter(waves(an4["test"]).values()))

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(speech2text.asr_model, "encode", full)
    for speech in (wave, [wave, wave]):
        with pytest.raises(NoRoomError, match="cut it where nobody speaks"):
            speech2text(speech)


def recordings(an4, folder: Path) -> tuple[list[str], int]:
    """Three files, the second of which is long, and the samples of the others."""
    wave = next(iter(waves(an4["test"]).values()))
    names = []
    for i, times in enumerate((1, 3, 1)):
        path = folder / f"u{i}.wav"
        soundfile.write(path, np.concatenate([wave] * times), 16000)
        names.append(str(path))
    return names, len(wave)


def patched(monkeypatch, most: int) -> None:
    """Let memory end at so many samples, in all that is opened from now on."""
    from espnet_hra.espnet.inference import Speech2Text

    encode = Speech2Text._encode

    def encode_some(self, batch):
        if sum(map(len, batch)) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return encode(self, batch)

    monkeypatch.setattr(Speech2Text, "_encode", encode_some)


@pytest.mark.parametrize("more", [[], ["--verbose"]])
def test_transcribe_names_the_file_and_does_the_others(
    more, model, an4, tmp_path, monkeypatch, capsys
):
    files, samples = recordings(an4, tmp_path)
    words = ["transcribe", *files, "--model", str(model), "--task", "female", *more]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    expected = capsys.readouterr().out.splitlines()
    assert not ended.value.code and len(expected) == 3
    patched(monkeypatch, samples)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [expected[0], expected[2]]
    (line,) = [x for x in said.err.splitlines() if "does not fit into memory" in x]
    assert line.startswith(f"espnet-hra transcribe: {files[1]}: an utterance of ")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_decode_names_the_utterance(batch_size, model, an4, tmp_path, monkeypatch):
    files, samples = recordings(an4, tmp_path)
    lines = [f"u{i} {name}\n" for i, name in enumerate(files)]
    (tmp_path / "wav.scp").write_text("".join(lines))
    patched(monkeypatch, samples)
    words = ["decode", "--asr_train_config", str(model / "config.yaml")]
    words += ["--asr_model_file", str(model / "valid.cer_ctc.best.pth")]
    words += ["--output_dir", str(tmp_path / "out"), "--num_workers", "0"]
    words += ["--data_path_and_name_and_type", f"{tmp_path / 'wav.scp'},speech,sound"]
    words += ["--ctc_greedy", "true", "--task", "female"]
    with pytest.raises(
        SystemExit, match=rf"u1 \({3 * samples:,} samples\) does not fit"
    ):
        cli.main([*words, "--batch_size", str(batch_size)])


def test_the_server_refuses_what_does_not_fit_and_answers_the_others(
    model, an4, tmp_path, monkeypatch
):
    serving = pytest.importorskip("serving")
    from espnet_hra.serve.engine import Engine

    files, samples = recordings(an4, tmp_path)
    engine = Engine.open(str(model))
    with serving.serving(engine) as url:
        expected = serving.ask(url, files[0], "female").json()
        patched(monkeypatch, samples)
        refused = serving.ask(url, files[1], "female")
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "out_of_memory"
        assert "does not fit into memory" in refused.json()["error"]["message"]
        assert serving.ask(url, files[2], "female").json() == expected
