"""`espnet-hra serve`: OpenAI's interface, tasks that come and go, bad input."""

import concurrent.futures
import re
import shutil
import socket
import subprocess
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import soundfile
from adaptations import TASKS, make_adaptation, waves
from serving import TOKEN, ask, serving, write

import espnet_hra
from espnet_hra import cli
from espnet_hra.serve.engine import Engine
from espnet_hra.tasks import file as taskfile

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

FEMALE, CARLO = TASKS


@pytest.fixture(scope="module")
def exp(base, tmp_path_factory):
    return make_adaptation(tmp_path_factory.mktemp("served") / "exp", base)


@pytest.fixture(scope="module")
def recordings(an4, tmp_path_factory):
    """Two recordings as files."""
    folder = tmp_path_factory.mktemp("recordings")
    found = list(waves(an4["train"]).values())[:2]
    return [write(folder / f"{i}.flac", wave) for i, wave in enumerate(found)]


@pytest.fixture(scope="module")
def expected(exp, an4):
    """What `Speech2Text` writes down alone, by recording and task (None: the base)."""
    alone = espnet_hra.Speech2Text.from_pretrained(str(exp), ctc_greedy=True)
    found = list(waves(an4["train"]).values())[:2]
    return {
        (i, task): _alone(alone, wave, task)
        for i, wave in enumerate(found)
        for task in (FEMALE, CARLO, None)
    }


def _alone(speech2text, wave, task):
    with speech2text.asr_model.encoder.use_task(task):
        return speech2text(wave)[0][0]


@pytest.fixture(scope="module")
def engine(exp):
    return Engine.open(str(exp))


@pytest.fixture(scope="module")
def url(engine):
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


# ------------------------------------------------------------------- OpenAI's client


@pytest.mark.parametrize(
    "model, task", [(FEMALE, FEMALE), (CARLO, CARLO), ("small", None)]
)
def test_the_official_client_gets_the_text_of_the_task(
    client, recordings, expected, model, task
):
    for i, path in enumerate(recordings):
        with open(path, "rb") as file:
            found = client.audio.transcriptions.create(model=model, file=file)
        assert found.text == expected[i, task]
    assert expected[0, FEMALE] != expected[0, CARLO] != expected[0, None]


def test_the_official_client_reads_all_formats(client, recordings, expected):
    text = expected[0, FEMALE]

    def create(form):
        with open(recordings[0], "rb") as file:
            return client.audio.transcriptions.create(
                model=FEMALE, file=file, response_format=form
            )

    assert create("text") == text + "\n"
    verbose = create("verbose_json")
    assert verbose.text == verbose.segments[0].text == text
    assert verbose.segments[0].end == pytest.approx(float(verbose.duration), abs=0.01)
    assert verbose.segments[0].avg_logprob < 0
    assert verbose.hra == {"model": FEMALE}
    clock = re.escape(_clock(float(verbose.duration)))
    assert re.fullmatch(
        rf"1\n00:00:00,000 --> {clock.replace('@', ',')}\d\n{re.escape(text)}\n\n",
        create("srt"),
    )
    assert re.fullmatch(
        rf"WEBVTT\n\n00:00:00.000 --> {clock.replace('@', '.')}\d\n"
        rf"{re.escape(text)}\n\n",
        create("vtt"),
    )


def _clock(seconds):
    return f"00:00:{int(seconds):02}@{int(100 * seconds + 1e-6) % 100:02}"


def test_the_official_client_lists_models(client):
    assert [m.id for m in client.models.list()] == ["small", "auto", *TASKS]
    assert client.models.retrieve(CARLO).id == CARLO
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("nobody")


def test_the_official_client_meets_an_unknown_task(client, recordings):
    with open(recordings[0], "rb") as file, pytest.raises(openai.NotFoundError) as e:
        client.audio.transcriptions.create(model="nobody", file=file)
    assert e.value.code == "model_not_found" and e.value.param == "model"
    assert "this server has small, auto, female, it.carlo" in str(e.value)


def test_curl_as_in_openais_documents(url, recordings, expected):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-s", f"{url}/v1/audio/transcriptions"]
    command += ["-H", "Authorization: Bearer unused"]
    command += ["-H", "Content-Type: multipart/form-data"]
    command += ["-F", f"file=@{recordings[1]}", "-F", f"model={CARLO}"]
    command += ["-F", "response_format=text"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == expected[1, CARLO] + "\n"


# -------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "form, status, param",
    [
        ({"response_format": "docx"}, 400, "response_format"),
        ({"prompt": "Dear Sir"}, 400, "prompt"),
        ({"temperature": 0.5}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"stream": "true"}, 400, "stream"),
        ({"language": "fr"}, 400, "language"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities[]"),
        ({"timestamp_granularities": "word"}, 400, "timestamp_granularities"),
        ({"include[]": "logprobs"}, 400, "include[]"),
        ({"chunking_strategy": "server_vad"}, 400, "chunking_strategy"),
        ({"chunking_strategy[type]": "server_vad"}, 400, "chunking_strategy[type]"),
        ({"langauge": "fr"}, 400, "langauge"),
        ({"temperature": "nan"}, 400, "temperature"),
        ({"temperature": "-1"}, 400, "temperature"),
        ({"stream": "perhaps"}, 400, "stream"),
        ({"model": [FEMALE, CARLO]}, 400, "model"),
        ({"language": ["", ""]}, 400, "language"),
        ({"prompt": "a" * 2_000_000}, 400, None),
        ({"model": "a" * 300}, 404, "model"),
        ({"model": "auto:"}, 400, "model"),
        ({"model": ""}, 400, "model"),
        ({"model": "../female"}, 404, "model"),
        ({"model": "auto:nobody"}, 404, "model"),
    ],
)
def test_what_is_not_done_is_refused_with_the_field(
    url, recordings, form, status, param
):
    with open(recordings[0], "rb") as file:
        answer = httpx.post(
            f"{url}/v1/audio/transcriptions",
            files={"file": file},
            data={"model": FEMALE, **form},
        )
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_what_changes_nothing_may_be_said(url, recordings, expected):
    form = {
        "temperature": "0",
        "stream": "false",
        "prompt": "",
        "language": "",
        "response_format": "json",
        "timestamp_granularities[]": "segment",
        "chunking_strategy": "auto",
        "include[]": "",
    }
    answer = ask(url, recordings[0], FEMALE, **form)
    assert answer.status_code == 200 and answer.json()["text"] == expected[0, FEMALE]


def problem_of(answer):
    """What is refused, in OpenAI's form."""
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    assert error["type"] == "invalid_request_error"
    return error


def test_requests_that_are_none_are_refused_in_openais_form(url, recordings, caplog):
    where = f"{url}/v1/audio/transcriptions"
    content = recordings[0].read_bytes()
    good = {"file": ("a.flac", content)}
    for given, param, words in (
        ({"data": {"model": FEMALE}}, "file", "multipart/form-data"),
        ({"json": {"model": FEMALE}}, "file", "multipart/form-data"),
        ({"content": b""}, "file", "multipart/form-data"),
        ({"files": {"file": (None, "hello"), "model": (None, FEMALE)}}, "file", "as a"),
        ({"files": good}, "model", "name of a task"),
        ({"files": {**good, "model": ("m", b"x")}}, "model", "name of a task"),
        (
            {"files": [*good.items(), *good.items(), ("model", (None, FEMALE))]},
            "file",
            "2",
        ),
        ({"files": {"file": ("a" * 9000, content)}}, None, "cannot be read"),
        ({"files": {**good, "a" * 9000: (None, "1")}}, None, "cannot be read"),
    ):
        answer = httpx.post(where, **given)
        error = problem_of(answer)
        assert (answer.status_code, error["param"]) == (400, param), given
        assert words in error["message"]
    kind = {"Content-Type": "multipart/form-data"}
    for head in (kind, {"Content-Type": kind["Content-Type"] + "; boundary=x"}):
        answer = httpx.post(where, content=b"--x garbage", headers=head)
        assert answer.status_code == 400
        assert problem_of(answer)["code"] == "broken_body"
    many = {f"f{i}": (None, "1") for i in range(1200)}
    assert httpx.post(where, files={**good, **many}).status_code == 400
    # A name says nothing of where anything is.
    answer = httpx.post(
        where, files={"file": ("../../x/song.mp3", b"song")}, data={"model": FEMALE}
    )
    assert problem_of(answer)["message"].startswith("cannot read song.mp3 as audio: ")
    assert not [r for r in caplog.records if r.exc_info]


def test_paths_and_methods_that_are_none_are_refused_in_openais_form(url):
    for method, path, status, allow in (
        ("GET", "/v1/audio/transcriptions", 405, "POST"),
        ("PUT", "/v1/audio/transcriptions", 405, "POST"),
        ("OPTIONS", "/v1/audio/transcriptions", 405, "POST"),
        ("GET", f"/v1/tasks/{FEMALE}", 405, "DELETE, PUT"),
        ("DELETE", f"/v1/models/{FEMALE}", 405, "GET"),
        ("POST", "/v1/chat/completions", 404, None),
        ("PUT", "/v1/tasks/", 404, None),
        ("GET", "/docs", 404, None),  # would load scripts from elsewhere
    ):
        answer = httpx.request(method, url + path)
        assert answer.status_code == status, path
        assert answer.headers.get("Allow") == allow
        error = problem_of(answer)
        assert error["code"] == "unknown_url" and path in error["message"]
    assert httpx.head(f"{url}/v1/audio/transcriptions").status_code == 405
    assert httpx.head(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize(
    "field, value, status",
    [
        ("data", 2**32 - 1, 200),  # a stream, whose length was not known
        ("data", 10**6, 400),
        ("data", 20, 200),  # what stands behind the samples is not heard
        ("rate", 0, 400),
        ("rate", 4 * 10**9, 400),
        ("channels", 0, 400),
        ("channels", 65535, 400),
    ],
)
def test_headers_that_lie_are_refused_or_believed(
    url, an4, tmp_path, field, value, status
):
    wave = next(iter(waves(an4["train"]).values()))
    content = bytearray(write(tmp_path / "a.wav", wave).read_bytes())
    place, size = {
        "data": (content.index(b"data") + 4, 4),
        "rate": (content.index(b"fmt ") + 12, 4),
        "channels": (content.index(b"fmt ") + 10, 2),
    }[field]
    content[place : place + size] = value.to_bytes(size, "little")
    (tmp_path / "lie.wav").write_bytes(content)
    answer = ask(url, tmp_path / "lie.wav", FEMALE)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert problem_of(answer)["param"] == "file" and "lie.wav" in answer.text
        assert "Errno" not in answer.text


def test_what_is_louder_than_numbers_can_be_squared_warns_of_nothing(
    url, tmp_path, recwarn
):
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", 1e30 * wave, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "nan.wav", np.nan * wave, 16_000, subtype="FLOAT")
    assert ask(url, tmp_path / "loud.wav", FEMALE).status_code == 200
    answer = ask(url, tmp_path / "nan.wav", FEMALE)
    assert answer.status_code == 400 and "not numbers" in answer.text
    assert not [w for w in recwarn if w.category is RuntimeWarning]


def test_clients_that_go_away_leave_nothing_behind(
    engine, recordings, expected, caplog
):
    with serving(engine, requests=4) as url:
        request = httpx.Request(
            "POST",
            f"{url}/v1/audio/transcriptions",
            files={"file": ("a.flac", recordings[0].read_bytes())},
            data={"model": FEMALE},
        )
        body, address = request.read(), urlsplit(url)
        head = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
        head = f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode()
        for i in range(24):
            with socket.create_connection((address.hostname, address.port)) as line:
                line.sendall(head + (b"", body[:999], body)[i % 3])
        end = time.monotonic() + 60
        while (answer := ask(url, recordings[0], FEMALE)).status_code == 503:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert answer.json()["text"] == expected[0, FEMALE]
        text = httpx.get(f"{url}/metrics").text
        assert "espnet_hra_pieces_waiting 0.0" in text
        assert "espnet_hra_requests_inside 0.0" in text
    assert not [r for r in caplog.records if r.exc_info]


def test_who_is_refused_may_send_to_the_end_and_reads_why(engine):
    """A connection that ends while a client sends would take the answer with it."""
    body = b"x" * 8_000_000
    with serving(engine, most_bytes=1_000_000) as url, httpx.Client() as client:
        for _ in range(5):
            answer = client.post(f"{url}/v1/audio/transcriptions", content=body)
            assert answer.status_code == 413
            answer = client.put(f"{url}/v1/tasks/x", content=body[:900_000])
            assert answer.status_code == 401
        text = httpx.get(f"{url}/metrics").text
    path = 'path="/v1/audio/transcriptions"'
    assert f'espnet_hra_requests_total{{{path},status="413"}} 5.0' in text


def test_bad_recordings_are_refused_in_words(url, tmp_path):
    text = tmp_path / "notes.mp3"
    text.write_text("This is no audio. " * 100)
    empty = tmp_path / "empty.wav"
    empty.touch()
    silent = write(tmp_path / "none.wav", np.zeros(0))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(write(tmp_path / "a.wav", np.ones(9000) / 2).read_bytes()[:5000])
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'a.wav'}\n#EXT-X-ENDLIST\n")
    for path, reason in (
        (text, "notes.mp3"),
        (empty, "empty.wav is empty"),
        (silent, "no audio"),
        (cut, "cut short"),
        (playlist, "list.m3u8"),
    ):
        answer = ask(url, path, FEMALE)
        assert answer.status_code == 400, path
        error = answer.json()["error"]
        assert reason in error["message"] and error["param"] == "file"
        assert "/tmp" not in error["message"]


def test_four_hours_are_refused_before_they_are_read(url, tmp_path):
    path = tmp_path / "long.flac"
    write(path, np.zeros(4 * 3600 * 1000, dtype=np.float32), rate=1000)
    answer = ask(url, path, FEMALE)
    assert answer.status_code == 400
    assert "longer (14,400 s) than the 1,800 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused_before_they_are_read(engine, recordings, chunked):
    with serving(engine, most_bytes=20_000) as url:
        body = b"x" * 100_000
        answer = httpx.post(
            f"{url}/v1/audio/transcriptions",
            content=iter([body]) if chunked else body,
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        )
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "file_too_large"
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_silence_and_what_is_too_short_have_no_text(url, tmp_path):
    quiet = write(tmp_path / "quiet.wav", np.zeros(16_000))
    short = write(tmp_path / "short.wav", 0.1 * np.ones(200))
    for path in (quiet, short):
        answer = ask(url, path, FEMALE)
        assert answer.status_code == 200 and answer.json()["text"] == ""


def test_a_hundred_uploads_at_once_are_answered_or_told_to_come_again(
    engine, recordings, expected
):
    with serving(engine, requests=10) as url:
        with concurrent.futures.ThreadPoolExecutor(100) as threads:
            answers = list(
                threads.map(lambda i: ask(url, recordings[i % 2], FEMALE), range(100))
            )
        for i, answer in enumerate(answers):
            if answer.status_code == 200:
                assert answer.json()["text"] == expected[i % 2, FEMALE]
            else:
                assert answer.status_code == 503
                assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert {a.status_code for a in answers} == {200, 503}
        assert ask(url, recordings[0], FEMALE).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(engine, recordings):
    with serving(engine, timeout=1e-4) as url:
        answer = ask(url, recordings[0], FEMALE)
        # The body itself may have been too slow for a limit that short.
        assert answer.status_code in (408, 504), answer.text
        assert answer.json()["error"]["message"]
        assert httpx.get(f"{url}/healthz").status_code == 200


# ----------------------------------------------------------------------------- tasks


@pytest.fixture
def changing(base, tmp_path):
    """A server of its own, and the file of a third task."""
    exp = make_adaptation(tmp_path / "exp", base)
    engine = Engine.open(str(exp))
    encoder = engine.encoder
    encoder.save_task(CARLO, tmp_path / "carlo.safetensors")
    encoder.add_task("new")
    vector = encoder.adapter.heads.vector("new")
    vector.data = encoder.adapter.heads.vector(CARLO).data.clone()
    encoder.save_task("new", tmp_path / "new.safetensors")
    encoder.remove_task("new")
    with serving(engine) as url:
        yield url, tmp_path, exp


def put(url, name, content, token=TOKEN):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.put(f"{url}/v1/tasks/{name}", content=content, headers=headers)


def test_tasks_come_are_replaced_and_go_while_others_are_served(changing, recordings):
    url, folder, exp = changing
    content = (folder / "new.safetensors").read_bytes()
    before = ask(url, recordings[0], CARLO).json()["text"]
    assert ask(url, recordings[0], "new").status_code == 404
    answer = put(url, "new", content)
    assert answer.status_code == 201 and answer.json()["replaced"] is False
    assert ask(url, recordings[0], "new").json()["text"] == before
    assert put(url, "new", content).json()["replaced"] is True
    assert (exp / "tasks" / "new.safetensors").read_bytes() == content
    headers = {"Authorization": f"Bearer {TOKEN}"}
    # One of the checkpoint as well; the others stay.
    for name in ("new", FEMALE):
        answer = httpx.delete(f"{url}/v1/tasks/{name}", headers=headers)
        assert answer.json()["deleted"] is True
        assert ask(url, recordings[0], name).status_code == 404
        again = httpx.delete(f"{url}/v1/tasks/{name}", headers=headers)
        assert again.status_code == 404
    assert ask(url, recordings[0], CARLO).json()["text"] == before


def test_broken_task_files_are_refused_and_change_nothing(changing, recordings):
    url, folder, exp = changing
    content = (folder / "new.safetensors").read_bytes()
    damaged = bytearray(content)
    damaged[-1] ^= 1
    for name, given, reason in (
        ("new", bytes(damaged), "checksum"),
        ("new", content[:100], "not a readable task file"),
        ("new", b"", "not a readable task file"),
        ("other", content, "holds the task 'new', not 'other'"),
        ("auto", content, "cannot be the name"),
        ("small", content, "cannot be the name"),
        ("a b", content, "cannot be the name"),
        ("%00", content, "cannot be the name"),
        ("a" * 300, content, "cannot be the name"),
    ):
        answer = put(url, name, given)
        assert answer.status_code == 400, name
        assert reason in answer.json()["error"]["message"]
    assert not (exp / "tasks").exists() or not list((exp / "tasks").glob("*.safe*"))
    # One that someone has put there by hand:
    (exp / "tasks").mkdir(exist_ok=True)
    (exp / "tasks" / "hand.safetensors").write_bytes(bytes(damaged))
    answer = ask(url, recordings[0], "hand")
    assert answer.status_code == 422 and "checksum" in answer.text
    assert ask(url, recordings[0], CARLO).status_code == 200


def test_a_folder_that_cannot_be_written_to_is_no_fault_of_the_client(
    changing, recordings
):
    url, folder, exp = changing
    content = (folder / "new.safetensors").read_bytes()
    (exp / "tasks" / ".lock").mkdir(parents=True)  # nobody can open it
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for answer in (
        put(url, "new", content),
        httpx.delete(f"{url}/v1/tasks/{CARLO}", headers=headers),
    ):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "tasks_unwritable"
    assert ask(url, recordings[0], CARLO).status_code == 200
    assert ask(url, recordings[0], "new").status_code == 404
    shutil.rmtree(exp / "tasks")
    (exp / "tasks").touch()  # nor is there a folder any more
    answer = httpx.get(f"{url}/v1/models")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "tasks_unreadable"
    assert ask(url, recordings[0], CARLO).status_code == 200


def test_without_the_token_no_task_changes(changing, engine):
    url, folder, _ = changing
    content = (folder / "new.safetensors").read_bytes()
    for token in ("", "wrong", TOKEN[:-1]):
        answer = put(url, "new", content, token)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_token"
    with serving(engine, token="") as url:
        for token in ("", TOKEN):
            answer = put(url, "new", content, token)
            assert answer.status_code == 403 and "ESPNET_HRA_TOKEN" in answer.text


# ------------------------------------------------------------------------- operation


def test_metrics_count_what_was_done(engine, recordings):
    with serving(engine) as url:
        for model in (FEMALE, CARLO, "small", "nobody"):
            ask(url, recordings[0], model)
        text = httpx.get(f"{url}/metrics").text
    path = 'path="/v1/audio/transcriptions"'
    assert f'espnet_hra_requests_total{{{path},status="200"}} 3.0' in text
    assert f'espnet_hra_requests_total{{{path},status="404"}} 1.0' in text
    assert 'espnet_hra_choices_total{by="name"} 2.0' in text
    assert "espnet_hra_wait_seconds_count 3.0" in text


def test_auto_says_which_task_it_took(url, recordings, expected):
    answer = ask(url, recordings[0], "auto", response_format="verbose_json")
    told = answer.json()["hra"]
    taken = answer.headers["X-Model"]
    assert told["model"] == taken and told["asked"] == "auto"
    confidence = told["confidence"]
    assert confidence.keys() == {"small", *TASKS}
    best = max(TASKS, key=confidence.__getitem__)
    sure = confidence[best] >= confidence["small"]
    assert taken == (best if sure else "small")
    task = None if taken == "small" else taken
    assert answer.json()["text"] == expected[0, task]


def test_auto_abstains_below_its_threshold_and_takes_candidates(
    engine, recordings, expected
):
    with serving(engine, auto_threshold=100.0) as url:
        answer = ask(url, recordings[0], "auto", response_format="verbose_json").json()
        assert answer["hra"]["abstained"] and answer["text"] == expected[0, None]
    with serving(engine, auto_threshold=-100.0, auto_tasks=1) as url:
        answer = ask(url, recordings[0], f"auto:{CARLO}")
        assert answer.headers["X-Model"] == CARLO
        assert answer.json()["text"] == expected[0, CARLO]
        answer = ask(url, recordings[0], "auto")
        assert answer.status_code == 400 and "auto:NAME,NAME" in answer.text


@pytest.fixture(scope="module")
def voiced(base, an4, tmp_path_factory):
    """A model whose tasks' voices are known: of her, and of a hum."""
    folder = tmp_path_factory.mktemp("voiced")
    exp = make_adaptation(folder / "exp", base)
    wave = next(iter(waves(an4["train"]).values()))
    hum = 0.3 * np.sin(np.arange(16_000) * 2 * np.pi * 150 / 16_000)
    lines, tasks = [], []
    for i in range(4):
        for task, part in ((FEMALE, wave[i * 2000 :][:16_000]), (CARLO, hum[i * 99 :])):
            path = write(folder / f"{task}{i}.wav", part)
            lines.append(f"{task}{i} {path}\n")
            tasks.append(f"{task}{i} {task}\n")
    (folder / "wav.scp").write_text("".join(lines))
    (folder / "utt2task").write_text("".join(tasks))
    with pytest.raises(SystemExit) as end:
        cli.main(["tasks", "voice", str(folder), "--model", str(exp)])
    assert end.value.code == 0
    return (
        exp,
        write(folder / "she.wav", wave[9000:24_000]),
        write(folder / "hum.wav", hum[500:]),
    )


def test_auto_takes_the_task_whose_voice_is_nearest(voiced):
    exp, she, hum = voiced
    engine = Engine.open(str(exp))
    alone = espnet_hra.Speech2Text.from_pretrained(str(exp), ctc_greedy=True)
    with serving(engine, auto_distance=100.0) as url:
        for path, task in ((she, FEMALE), (hum, CARLO)):
            answer = ask(url, path, "auto", response_format="verbose_json")
            assert answer.headers["X-Model"] == task
            told = answer.json()["hra"]
            assert (told["by"], told["model"], told["abstained"]) == (
                "voice",
                task,
                False,
            )
            assert next(iter(told["likelihood"])) == task and told["distance"] < 100
            wave = soundfile.read(path, dtype="float32")[0]
            assert answer.json()["text"] == _alone(alone, wave, task)
        quiet = write(she.parent / "quiet.wav", np.zeros(16_000))
        assert ask(url, quiet, "auto").headers["X-Model"] == "small"
    with serving(engine, auto_distance=0.01) as url:
        answer = ask(url, she, "auto", response_format="verbose_json")
        assert (
            answer.headers["X-Model"] == "small" and answer.json()["hra"]["abstained"]
        )
        wave = soundfile.read(she, dtype="float32")[0]
        assert answer.json()["text"] == _alone(alone, wave, None)


def harmed(content, place=-1):
    """A task's file with one wrong byte."""
    damaged = bytearray(content)
    damaged[place] ^= 1
    return bytes(damaged)


def exported(exp, name, out):
    """The content of a task's file."""
    with pytest.raises(SystemExit) as end:
        cli.main(["tasks", "export", name, "--model", str(exp), "--out", str(out)])
    assert end.value.code == 0
    return out.read_bytes()


@pytest.fixture
def spoiled(voiced, base, tmp_path):
    """A model whose folder of tasks has files that cannot be used, of many kinds."""
    exp = shutil.copytree(voiced[0], tmp_path / "exp")
    folder = exp / "tasks"
    folder.mkdir()
    content = exported(exp, FEMALE, tmp_path / "female.safetensors")
    (folder / "damaged.safetensors").write_bytes(harmed(content))
    (folder / "empty.safetensors").touch()
    (folder / "begun.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "renamed.safetensors").write_bytes(content)
    (folder / "folder.safetensors").mkdir()
    (folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    foreign = make_adaptation(tmp_path / "foreign", base, controller_size=8)
    out = folder / "foreign.safetensors"
    Engine.open(str(foreign)).encoder.save_task(CARLO, tmp_path / "f.safetensors")
    record = taskfile.read(tmp_path / "f.safetensors")
    identity = {k: record.record[k] for k in ("config", "backbone", "controller")}
    taskfile.save(out, "foreign", record.tensors, identity)
    # Whole, and for this model, but with a voice that nobody can read.
    own = taskfile.read(tmp_path / "female.safetensors")
    identity = {k: own.record[k] for k in ("config", "backbone", "controller")}
    info = {**own.info, "voice": "1 20 nonsense"}
    taskfile.save(folder / "hoarse.safetensors", "hoarse", own.tensors, identity, info)
    return exp


#: Those of `spoiled` that are there.
UNUSABLE = ["begun", "damaged", "empty", "folder", "foreign", "hoarse", "renamed"]


def test_auto_leaves_out_tasks_whose_files_cannot_be_used(spoiled, voiced, caplog):
    _, she, hum = voiced
    with serving(Engine.open(str(spoiled)), auto_distance=100.0) as url:
        assert httpx.get(f"{url}/healthz").json()["unusable_tasks"] == []
        for path, task in ((she, FEMALE), (hum, CARLO), (she, FEMALE)):
            answer = ask(url, path, "auto", response_format="verbose_json")
            assert answer.headers["X-Model"] == task
            told = answer.json()["hra"]
            assert told["by"] == "voice" and told["likelihood"].keys() == set(TASKS)
        # Each is said once, and where one looks for it.
        said = [r.args[0] for r in caplog.records if "cannot be used" in r.message]
        assert sorted(said) == UNUSABLE
        health = httpx.get(f"{url}/healthz")
        assert health.status_code == 200
        assert health.json() == {"status": "ok", "unusable_tasks": UNUSABLE}
        text = httpx.get(f"{url}/metrics").text
        assert f"espnet_hra_unusable_tasks {len(UNUSABLE)}.0" in text
        # Whoever names one is told.
        for model in ("damaged", "auto:damaged", f"auto:{FEMALE},damaged"):
            answer = ask(url, she, model)
            assert answer.status_code == 422
            error = answer.json()["error"]
            assert error["code"] == "task_unusable" and "checksum" in error["message"]
            assert str(spoiled) not in error["message"]
        for model in ("gone", "auto:gone"):
            assert ask(url, she, model).status_code == 404
        assert ask(url, she, "hoarse").status_code == 200  # its voice is not needed
        assert ask(url, she, f"auto:{FEMALE},{CARLO}").headers["X-Model"] == FEMALE
        # What was put right counts at once, also where nobody asked for it yet.
        path = spoiled / "tasks" / "damaged.safetensors"
        path.write_bytes(harmed(path.read_bytes()))
        (spoiled / "tasks" / "empty.safetensors").unlink()
        health = httpx.get(f"{url}/healthz").json()
        assert not {"damaged", "empty"} & set(health["unusable_tasks"])


def test_auto_is_the_base_where_no_task_can_be_used(spoiled, voiced):
    exp = shutil.copytree(spoiled, spoiled.parent / "none", symlinks=True)
    (exp / "tasks" / "removed.txt").write_text("\n".join(TASKS))
    with serving(Engine.open(str(exp)), auto_distance=100.0) as url:
        answer = ask(url, voiced[1], "auto", response_format="verbose_json")
        assert answer.headers["X-Model"] == "small"
        told = answer.json()["hra"]
        assert told["abstained"] and told["likelihood"] == {}


@pytest.mark.parametrize("how", ["removed", "damaged"])
@pytest.mark.parametrize("by", ["voice", "confidence"])
def test_auto_chooses_again_where_a_file_goes_while_it_chooses(
    voiced, tmp_path, monkeypatch, how, by
):
    """After its voice was compared, and before it reads."""
    exp = shutil.copytree(voiced[0], tmp_path / "exp")
    (exp / "tasks").mkdir()
    file = exp / "tasks" / f"{FEMALE}.safetensors"
    content = exported(exp, FEMALE, tmp_path / "female.safetensors")
    file.write_bytes(content)
    if by == "confidence":
        (exp / "voices.json").unlink()
    engine = Engine.open(str(exp))
    decode = engine.decode

    def slowly(jobs):
        found = decode(jobs)
        if hasattr(jobs[0], "candidates"):
            if how == "damaged":
                file.write_bytes(harmed(content))
            elif engine.knows(FEMALE):
                engine.store.remove(FEMALE, in_checkpoint=True)
        return found

    monkeypatch.setattr(engine, "decode", slowly)
    settings = {"auto_distance": 1e6, "auto_threshold": -1e6}
    with serving(engine, **settings) as url:
        answer = ask(url, voiced[1], "auto", response_format="verbose_json")
        told = answer.json()["hra"]
        assert (told["model"], told["by"]) == (CARLO, by)
        assert FEMALE not in told["likelihood" if by == "voice" else "confidence"]
        # Who names it is told that it is gone, or damaged.
        file.write_bytes(content)
        answer = ask(url, voiced[1], f"auto:{FEMALE}")
        assert answer.status_code == (422 if how == "damaged" else 404)


def test_the_bench_of_auto_leaves_out_what_cannot_be_used(spoiled, voiced, capsys):
    folder = spoiled.parent / "data"
    folder.mkdir()
    _, she, hum = voiced
    (folder / "wav.scp").write_text(f"a {she}\nb {hum}\n")
    (folder / "text").write_text("a yes\nb no\n")
    (folder / "utt2task").write_text(f"a {FEMALE}\nb {CARLO}\n")
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "auto", "--model", str(spoiled), "--data", str(folder)])
    assert not end.value.code
    told = capsys.readouterr().out
    for name in [*UNUSABLE, "gone"]:
        assert f"left out: task {name}: " in told
    assert "by voice" in told and "with auto among 2 tasks" in told


def test_a_voice_travels_with_its_task(voiced, tmp_path):
    """From beside the checkpoint into a file, and from there to another model."""
    exp, she, _ = voiced
    file = tmp_path / "f.safetensors"
    with pytest.raises(SystemExit) as end:
        cli.main(["tasks", "export", FEMALE, "--model", str(exp), "--out", str(file)])
    assert end.value.code == 0
    engine = Engine.open(str(exp))
    own = engine.encoder.task_info(FEMALE)["voice"]
    assert taskfile.describe(file)["voice"] == own
    other = shutil.copytree(exp, tmp_path / "other")
    (other / "voices.json").unlink()
    other = Engine.open(str(other))
    assert "voice" not in other.encoder.task_info(FEMALE)
    with serving(other) as url:
        # Without voices the decoders' confidence decides, and the answer says so.
        answer = ask(url, she, "auto", response_format="verbose_json").json()
        assert answer["hra"]["by"] == "confidence"
        assert put(url, FEMALE, file.read_bytes()).status_code == 200
        answer = ask(url, she, f"auto:{FEMALE}", response_format="verbose_json").json()
        assert answer["hra"]["by"] == "voice"


def test_a_damaged_file_of_voices_is_said(voiced, tmp_path):
    exp = shutil.copytree(voiced[0], tmp_path / "exp")
    (exp / "voices.json").write_text("{}")
    with pytest.raises(espnet_hra.TaskError, match="not a readable file of voices"):
        Engine.open(str(exp))


def test_a_client_that_sends_nothing_more_is_let_go(engine):
    with serving(engine, timeout=0.5) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as line:
            line.sendall(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: 1000\r\n\r\n--x\r\n"
            )
            line.settimeout(60)
            assert line.recv(100).startswith(b"HTTP/1.1 408")
