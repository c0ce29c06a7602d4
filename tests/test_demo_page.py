"""The page in a real browser: Chromium without a window, driven by Playwright."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from adaptations import make_adaptation, waves
from browser import CHROMIUM, PATIENCE, chromium, demo, panel, upload

import espnet_hra
from espnet_hra import cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

pytest.importorskip("playwright.sync_api", reason="pip install 'espnet-hra[browser]'")
pytest.importorskip("gradio", reason="pip install 'espnet-hra[demo]'")

#: What can be used on the page.
CONTROLS = (
    "button, input:not([type=file]):not([type=hidden]), textarea, select, [role=tab],"
    " audio"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def model(base, folder) -> Path:
    return make_adaptation(folder / "exp", base)


@pytest.fixture(scope="module")
def speech(an4, folder) -> list[Path]:
    """Five recordings of real speech, and the sentences in them."""
    found = []
    for number, wave in enumerate(waves(an4["train"]).values()):
        found.append(folder / f"{number}.wav")
        soundfile.write(found[-1], wave, 16000)
    lines = (an4["train"] / "text").read_text().splitlines()
    said = [line.split(maxsplit=1)[1] for line in lines]
    (folder / "sentences.txt").write_text("\n".join(said) + "\n")
    return found


@pytest.fixture(scope="module")
def place(model, speech, folder):
    """Where the page is."""
    config = folder / "teach.yaml"
    config.write_text(yaml.safe_dump({"max_epoch": 2}))
    options = [model, "--sentences", folder / "sentences.txt", "--seed", 5]
    options += ["--config", config, "--recordings", folder / "kept"]
    temporary = folder / "tmp"
    temporary.mkdir()
    with demo(options, temporary) as address:
        yield address


@pytest.fixture(scope="module")
def browser(speech):
    """With a microphone that hears the third recording, over and over."""
    with chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={speech[2]}",
    ) as opened:
        yield opened


@pytest.fixture
def page(browser, place):
    """The page; whatever it asks for is asked of this machine."""
    opened = browser.new_page(viewport={"width": 1100, "height": 900})
    opened.set_default_timeout(1000 * PATIENCE)
    asked = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(place)
    opened.get_by_role("tab", name="Listen").wait_for()
    yield opened
    own = (place, place.replace("http", "ws"), "data:", "blob:")
    assert asked and all(url.startswith(own) for url in asked)
    opened.close()


def keep(part, text: str) -> None:
    """Keep a recording; the page has it a moment after it can be played."""
    part.get_by_role("button", name="Play", exact=True).wait_for()
    kept = part.get_by_text(text)
    early = part.get_by_role("alert").filter(has_text="There is no recording yet")
    for _ in range(60):
        part.get_by_role("button", name="Keep and go on").click()
        kept.or_(early).first.wait_for()
        if kept.count():
            return
        part.page.wait_for_timeout(1000)
    raise AssertionError("the recording does not come")


def test_a_recording_is_uploaded_and_compared(page, model, speech):
    part = panel(page, "Listen")
    upload(part, speech[2])
    part.get_by_role("button", name="Play", exact=True).wait_for()  # it can be heard
    assert page.get_by_role("button", name=re.compile("share", re.I)).count() == 0
    for task in ("female", "it.carlo"):
        part.get_by_role("checkbox", name=task, exact=True).check()
    part.get_by_role("button", name="Compare").click()
    part.get_by_role("table", name="Transcripts").wait_for()
    speech2text = espnet_hra.Speech2Text.from_pretrained(
        str(model), ctc_greedy=True, ctc_weight=1.0
    )
    wave = soundfile.read(speech[2], dtype="float32")[0]
    for task, name in ((None, "base (no task)"), ("female",) * 2, ("it.carlo",) * 2):
        row = part.get_by_role("row").filter(
            has=page.get_by_role("rowheader", name=name)
        )
        with speech2text.model.encoder.use_task(task):
            words = speech2text(wave)[0][0].split()
        shown = row.get_by_role("cell").evaluate(
            "cell => [...cell.childNodes].filter(n => n.nodeName != 'DEL')"
            ".map(n => n.textContent).join(' ')"
        )
        assert shown.split() == (words or ["(nothing)"])


def test_a_recording_is_made_with_the_microphone(page, folder):
    part = panel(page, "Teach")
    part.get_by_text("0 recorded in all").wait_for()
    part.get_by_role("button", name="Record audio").first.click()
    part.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(3000)
    part.get_by_role("button", name="Stop", exact=True).first.click()
    keep(part, "1 recorded in all")
    (kept,) = (folder / "kept").glob("lesson.*/audio/sentence0001.flac")
    wave, rate = soundfile.read(kept)
    assert rate == 16000 and 2.0 < len(wave) / rate < 6.0
    assert np.abs(wave).max() > 0.05  # somebody speaks


def test_what_is_no_speech_is_told_and_the_page_stays(page, folder):
    (folder / "poem.wav").write_text("Roses are red")
    soundfile.write(folder / "quiet.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "long.wav", np.full(16000 * 130, 0.1), 16000)
    part = panel(page, "Listen")
    part.get_by_role("button", name="Compare").click()
    part.get_by_role("alert").filter(has_text="There is no recording yet").wait_for()
    for name, text in (
        ("poem.wav", "poem.wav is no audio that can be read"),
        ("quiet.wav", "quiet.wav is silent"),
        ("long.wav", "long.wav is too long (130 seconds)"),
    ):
        page.reload()
        part = panel(page, "Listen")
        upload(part, folder / name)
        page.wait_for_function(
            "() => !document.body.innerText.includes('Uploading')"
            " && !document.querySelector('[aria-label=\"Drop an audio file here to"
            " upload\"]')?.checkVisibility()"
        )
        part.get_by_role("button", name="Compare").click()
        part.get_by_role("alert").filter(has_text=text).wait_for()


def test_five_sentences_teach_a_task(page, model, speech, folder):
    part = panel(page, "Teach")
    part.get_by_text("Sentence 1 of 5 (not recorded yet; 0 recorded").wait_for()
    teach = part.get_by_role("button", name="Teach", exact=True)
    part.get_by_role("textbox", name="Name of the new task").fill("../x")
    teach.click()
    part.get_by_role("alert").filter(has_text="'../x' is not a task name").wait_for()
    part.get_by_role("textbox", name="Name of the new task").fill("female")
    teach.click()
    part.get_by_role("alert").filter(has_text="a task 'female' already").wait_for()
    part.get_by_role("textbox", name="Name of the new task").fill("new")
    teach.click()
    part.get_by_role("alert").filter(has_text="3 are needed at least").wait_for()
    # One by itself, the others at once.
    upload(part, speech[0])
    keep(part, "Sentence 2 of 5 (not recorded yet; 1 recorded")
    upload(part, speech[1:], first=False)
    part.get_by_text("4 recordings were kept").wait_for()
    part.get_by_text("5 recorded in all").wait_for()
    teach.click()
    part.get_by_text("The task new is taught").wait_for()
    part.get_by_role("table", name=re.compile("2 held-out sentences.*95 %")).wait_for()
    with page.expect_download() as download:
        part.get_by_role("button", name="Download new").click()
    download.value.save_as(folder / "downloaded")
    content = (folder / "downloaded").read_bytes()
    assert content == (model / "tasks" / "new.safetensors").read_bytes()
    # The command makes the same file of the same recordings.
    (data,) = (folder / "kept").glob("lesson.*/new")
    out = folder / "by_command"
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["tasks", "add", "new", str(data), "--model", str(model), "--seed", "5"]
            + ["--config", str(folder / "teach.yaml"), "--out", str(out)]
        )
    assert not end.value.code
    assert out.read_bytes() == content
    part.get_by_role("button", name="Draw the learning curve").click()
    part.get_by_role("img", name=re.compile("Learning curve")).wait_for()
    part.get_by_text("Only 2 sentences were held out").wait_for()
    # The task is there to be listened to, and looked into with what was recorded.
    panel(page, "Listen").get_by_role("checkbox", name="new", exact=True).wait_for()
    part = panel(page, "Look inside")
    for name in ("female", "new"):
        part.get_by_role("checkbox", name=name, exact=True).check()
    part.get_by_role("button", name="Look inside").click()
    part.get_by_role("table", name="Tasks side by side").wait_for()
    assert part.get_by_role("row").filter(has_text="encoder 3").count() >= 1
    assert part.get_by_text("controller indrnn: 16 units").count() == 1


def test_a_damaged_task_is_told_and_the_page_stays(page, model, speech):
    file = model / "tasks" / "damaged.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"no task")
    try:
        page.reload()
        part = panel(page, "Listen")
        upload(part, speech[0])
        part.get_by_role("button", name="Play", exact=True).wait_for()
        for name in ("damaged", "female"):
            part.get_by_role("checkbox", name=name, exact=True).check()
        part.get_by_role("button", name="Compare").click()
        part.get_by_role("alert").filter(has_text="not a readable task file").wait_for()
        # The base and the other task are read all the same.
        for name in ("base (no task)", "female"):
            part.get_by_role("rowheader", name=name).wait_for()
        assert part.get_by_role("rowheader", name="damaged").count() == 0
        part = panel(page, "Look inside")
        part.get_by_role("checkbox", name="damaged", exact=True).check()
        upload(part, speech[0])
        part.get_by_role("button", name="Play", exact=True).wait_for()
        part.get_by_role("button", name="Look inside").click()
        part.get_by_role("alert").filter(has_text="not a readable task file").wait_for()
    finally:
        file.unlink()


@pytest.mark.parametrize("tab", ["Listen", "Teach", "Look inside"])
def test_every_control_has_a_name_and_is_reached_by_keyboard(page, tab):
    part = panel(page, tab)
    part.get_by_role("button").first.wait_for()
    nameless = part.get_by_role("button", name=re.compile(r"^\s*$"))
    assert nameless.count() == 0, nameless.all_inner_texts()
    for role in ("textbox", "checkbox", "combobox", "tab"):
        assert part.get_by_role(role, name=re.compile(r"^\s*$")).count() == 0
    script = (
        "selector => [...document.querySelectorAll(selector)]"
        ".filter(e => e.checkVisibility({visibilityProperty: true, opacityProperty:"
        " true}) && !e.disabled && e.getClientRects().length"
        " && !e.closest('[aria-hidden=true]'))"
    )
    page.evaluate(f"s => {{ window.wanted = ({script})(s); }}", CONTROLS)
    count = page.evaluate("() => window.wanted.length")
    assert count > 5
    page.evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(3 * count):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("() => window.wanted.indexOf(document.activeElement)")
        )
    names = page.evaluate("() => window.wanted.map(e => e.outerHTML.slice(0, 200))")
    missed = [names[i] for i in range(count) if i not in reached]
    assert not missed, missed


def test_other_web_sites_are_refused(place):
    answer = urllib.request.urlopen(place)
    policy = answer.headers["content-security-policy"]
    assert "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    for header, value in (("Origin", "http://evil.example"), ("Host", "evil.example")):
        request = urllib.request.Request(place, headers={header: value})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)
