"""Tasks that tell labels, in one batch with tasks that write texts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from adaptations import make_adaptation, waves
from small_encoders import adapted_encoder, as_if_trained, batch, gradients
from test_training import load, train

import espnet_hra
from espnet_hra.errors import ConfigError, DataError, TaskError
from espnet_hra.espnet import classifying
from espnet_hra.methods import classify
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.config import read_records

LABELS = ["en", "fr", "it"]
LANG = {"name": "lang", "head": "classify", "labels": LABELS}
WHO = {"name": "who", "head": "classify", "labels": ["fash", "fbbh"]}
TASKS = ["female", LANG, WHO]


@pytest.fixture(scope="module")
def model(base, tmp_path_factory) -> Path:
    return make_adaptation(tmp_path_factory.mktemp("classify") / "exp", base, TASKS)


@pytest.fixture(scope="module")
def speech2text(model):
    return espnet_hra.Speech2Text.from_pretrained(model, ctc_greedy=True)


# ------------------------------------------------------------------- the equations


def test_an_utterance_is_pooled_over_its_own_frames():
    generator = np.random.default_rng(0)
    y, lengths = generator.normal(size=(3, 7, 4)), [7, 3, 1]
    found = classify.pool(torch.from_numpy(y), torch.tensor(lengths))
    for row, frames, own in zip(y, lengths, found):
        mean, spread = row[:frames].mean(0), row[:frames].std(0)
        expected = np.concatenate([mean, np.sqrt(spread**2 + 1e-5)])
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-5)
    y[1, 3:], y[2, 1:] = np.nan, 1e9  # the padding
    again = classify.pool(torch.from_numpy(y), torch.tensor(lengths))
    torch.testing.assert_close(again, found)


def test_a_new_task_finds_all_labels_alike():
    encoder = adapted_encoder("conformer", TASKS)
    own = encoder.adapter.heads.gather_classifier("lang")
    pooled = torch.randn(1, own["weight"].size(1))
    (found,) = classify.logits(pooled, [own])
    assert found.tolist() == [0.0, 0.0, 0.0]
    as_if_trained(encoder)
    own = encoder.adapter.heads.gather_classifier("lang")
    (found,) = classify.logits(pooled, [own])
    expected = own["weight"] @ pooled[0] + own["bias"]
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------------------ as tasks


@pytest.mark.parametrize("method", ["hra", "lora", "full", "one"])
def test_a_task_of_labels_is_saved_and_loaded_with_them(method, tmp_path):
    conf = {"adapter": "hra", "one_for_all": True} if method == "one" else {}
    conf = conf or {"adapter": method}
    encoder = as_if_trained(adapted_encoder("conformer", TASKS, **conf))
    heads = encoder.adapter.heads
    plain, vector = heads.size, heads.vector("lang").clone()
    # A classifier of labels is all that it has more than other tasks.
    assert heads.vector("female").numel() == plain
    assert vector.numel() == plain + 3 * (2 * 16) + 3
    encoder.save_task("lang", tmp_path / "lang.safetensors")
    record = taskfile.describe(tmp_path / "lang.safetensors")
    assert record["labels"] == LABELS
    encoder.remove_task("lang")
    assert encoder.load_task(tmp_path / "lang.safetensors") == "lang"
    assert encoder.labels_of("lang") == tuple(LABELS)
    assert encoder.labels_of("female") == ()
    assert torch.equal(heads.vector("lang"), vector)
    # From a folder as well, fetched when it is used.
    encoder.save_task("lang", tmp_path / "store.safetensors")
    other = as_if_trained(adapted_encoder("conformer", ["female"], **conf))
    (tmp_path / "store").mkdir()
    shutil.move(tmp_path / "store.safetensors", tmp_path / "store/lang.safetensors")
    if method != "one":  # what is shared is another there
        other.load_state_dict(
            {k: v for k, v in encoder.state_dict().items() if "lang" not in k}
            | {"adapter.heads.female": heads.vector("female")},
            strict=False,
        )
        other.attach_store(tmp_path / "store")
        assert other.labels_of("lang") == tuple(LABELS)
        own = other.adapter.heads.gather_classifier("lang")
        assert torch.equal(own["bias"], vector[-3:])


def test_tasks_of_labels_are_added_and_others_do_not_change():
    encoder = as_if_trained(adapted_encoder("conformer", ["female"]))
    before = encoder.adapter.heads.vector("female").clone()
    encoder.add_task("lang", LABELS)
    assert encoder.labels_of("lang") == tuple(LABELS)
    assert torch.equal(encoder.adapter.heads.vector("female"), before)
    with pytest.raises(TaskError, match="exists already"):
        encoder.add_task("lang", ["a", "b"])
    assert encoder.labels_of("lang") == tuple(LABELS)
    with pytest.raises(TaskError, match="unknown task 'x'"):
        encoder.labels_of("x")


@pytest.mark.parametrize("labels", [["en"], ["en", "en"], ["en", "a b"], [1, 2], "en"])
def test_labels_that_cannot_be_told_apart_are_refused(labels):
    encoder = adapted_encoder("conformer")
    with pytest.raises(TaskError, match="task 'lang': labels: .*two or more different"):
        encoder.add_task("lang", labels)
    assert encoder.tasks == ()


def test_records_of_tasks_are_read_from_lists_and_files(tmp_path):
    path = tmp_path / "tasks"
    path.write_text(f"female\n{json.dumps(LANG)}\n")
    assert read_records(str(path)) == read_records(["female", LANG])
    assert [r.config() for r in read_records(["female", LANG])] == ["female", LANG]
    path.write_text("{name: lang}\n")
    with pytest.raises(TaskError, match="no record in JSON"):
        read_records(path)
    for bad in ({"name": "lang"}, {**LANG, "head": "ffn"}, {**LANG, "size": 3}):
        with pytest.raises(
            TaskError, match="name, head and labels, and head: classify"
        ):
            read_records([bad])
    with pytest.raises(TaskError, match="stand twice: lang"):
        read_records([LANG, "lang"])


# ------------------------------------------------------------------------- batches


def as_batch(model, names, answers):
    """A batch of noise, with these tasks and texts: numbers of labels or tokens."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.full((len(names),), 24000)
    speech = torch.randn(len(names), 24000, generator=generator)
    text = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(a) for a in answers], batch_first=True, padding_value=-1
    )
    counts = torch.tensor([len(a) for a in answers])
    return dict(speech=speech, speech_lengths=lengths, text=text, text_lengths=counts)


NAMES = ["female", "lang", "female", "who", "lang"]
ANSWERS = [[3, 4, 5], [2], [6, 3], [0], [1]]


def loss_of(model, names, answers, rows=None):
    given = as_batch(model, names, answers)
    rows = list(range(len(names))) if rows is None else rows
    given = {key: value[rows] for key, value in given.items()}
    with model.encoder.use_task([names[i] for i in rows]):
        return model(**given)


@pytest.mark.parametrize("adapter", ["hra", "lora"])
def test_a_mixed_batch_is_what_its_utterances_are_by_themselves(
    base, tmp_path, adapter
):
    from espnet_hra.espnet.task import HRATask

    conf = {} if adapter == "hra" else {"rank": 2, "alpha": 3}
    folder = make_adaptation(tmp_path / "exp", base, TASKS, adapter, **conf)
    model, _ = HRATask.build_model_from_file(None, folder / "valid.cer_ctc.best.pth")
    model.train()
    loss, stats, weight = loss_of(model, NAMES, ANSWERS)
    loss.backward()
    found = gradients(model)
    assert int(weight) == len(NAMES)
    assert {"loss", "loss_ctc", "cer_ctc", "loss_classify", "acc_classify"} <= set(
        stats
    )
    model.zero_grad()
    parts = []
    for row in range(len(NAMES)):
        one, own, _ = loss_of(model, NAMES, ANSWERS, [row])
        assert ("loss_classify" in own) == (NAMES[row] != "female")
        assert ("loss_ctc" in own) == (NAMES[row] == "female")
        (one / len(NAMES)).sum().backward()
        parts.append(float(one))
    assert float(loss) == pytest.approx(np.mean(parts), rel=1e-4)
    expected = gradients(model)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm()
        assert difference <= 1e-3 * gradient.norm() + 1e-6, name


def test_a_batch_of_one_task_moves_no_other(base, model):
    from espnet_hra.espnet.task import HRATask

    built, _ = HRATask.build_model_from_file(None, model / "valid.cer_ctc.best.pth")
    built.train()
    loss, *_ = loss_of(built, ["lang", "lang"], [[2], [0]])
    loss.backward()
    heads = {name.rpartition(".")[2] for name in gradients(built) if ".heads." in name}
    assert heads == {"lang"}
    vector = built.encoder.adapter.heads.vector("lang")
    assert vector.grad[-3:].abs().sum() > 0  # the classifier's
    assert vector.grad[:100].abs().sum() > 0  # and the head on the controller


# ------------------------------------------------------------------------- answers


def test_answers_are_labels_whatever_else_is_in_the_batch(speech2text, an4):
    heard = list(waves(an4["test"]).values())
    names = ["lang", "female", "who", "lang", "female"][: len(heard)]
    heard = (heard * 3)[: len(names)]
    alone = [speech2text(w, task=n)[0] for w, n in zip(heard, names)]
    together = speech2text(heard, task=names)
    for name, one, (other, *_) in zip(names, alone, together):
        assert one[0] == other[0]
        if name != "female":
            assert one[0] in speech2text.asr_model.encoder.labels_of(name)
            assert one[1] == [one[0]] and one[3].score == other[3].score < 0
            assert one[3].scores["margin"] >= 0 and one[3].scores["frames"] > 10
    measured = speech2text.measured(heard[0], "lang")
    assert measured.text == alone[0][0] and measured.effect > 0


def test_padding_does_not_change_an_answer():
    encoder = as_if_trained(adapted_encoder("conformer", TASKS))
    xs, lens = batch(3)
    own = encoder.adapter.heads.gather_classifier("lang")
    with torch.no_grad(), encoder.use_task("lang"):
        encoded, frames, _ = encoder(xs, lens)
        whole = classify.logits(classify.pool(encoded, frames), [own] * 3)
        for i, n in enumerate(lens.tolist()):
            encoded, frames, _ = encoder(xs[i : i + 1, :n], lens[i : i + 1])
            (one,) = classify.logits(classify.pool(encoded, frames), [own])
            torch.testing.assert_close(whole[i], one, rtol=1e-4, atol=1e-4)


def test_a_beam_search_s_model_tells_labels_as_well(model, speech2text, an4):
    (wave, *_) = waves(an4["test"]).values()
    searching = espnet_hra.Speech2Text.from_pretrained(model, beam_size=2)
    found = [s(wave, task="lang")[0] for s in (searching, speech2text)]
    assert found[0][0] == found[1][0] and found[0][3].score == found[1][3].score


# ------------------------------------------------------------------------ training


def labelled(an4: dict[str, Path], folder: Path) -> dict[str, Path]:
    """AN4 whose utterances stand there once more, to tell the speaker."""
    made = dict(an4)
    for part in ("train", "dev"):
        made[part] = folder / part
        made[part].mkdir(parents=True)
        lists = {}
        for name in ("wav.scp", "text", "utt2task", "utt2spk"):
            lines = (an4[part] / name).read_text().splitlines()
            lists[name] = [line.split(None, 1) for line in lines]
        speakers = dict(lists["utt2spk"])
        for name in ("wav.scp", "text", "utt2task"):
            more = {"wav.scp": None, "text": speakers, "utt2task": None}[name]
            lines = [f"{u} {v}\n" for u, v in lists[name]]
            for u, v in lists[name]:
                value = "spk" if name == "utt2task" else more[u] if more else v
                lines.append(f"spk-{u} {value}\n")
            (made[part] / name).write_text("".join(sorted(lines)))
    return made


def test_a_training_learns_labels_beside_texts(an4, base, tmp_path, capsys):
    data = labelled(an4, tmp_path / "data")
    speakers = sorted({s for s in (an4["train"] / "utt2spk").read_text().split()[1::2]})
    record = {"name": "spk", "head": "classify", "labels": speakers}
    conf = {"adapter": "hra", "adapter_conf": {"controller_size": 16}}
    exp = train(
        data,
        base,
        tmp_path / "exp",
        encoder_conf={**conf, "tasks": ["female", "male", record]},
        batch_size=8,
        max_epoch=15,
        optim_conf={"lr": 0.02},
        best_model_criterion=[["valid", "acc_classify", "max"]],
        keep_nbest_models=1,
        check_data=True,
    )
    saved = yaml.safe_load((exp / "config.yaml").read_text())
    assert saved["encoder_conf"]["tasks"] == ["female", "male", record]
    counts = json.loads((exp / "params.json").read_text())["per_task"]
    assert counts["spk"] == counts["male"] + len(speakers) * (2 * 32 + 1)
    trained = espnet_hra.Speech2Text.from_pretrained(exp, ctc_greedy=True, task="spk")
    said = dict(zip(*[iter((an4["train"] / "utt2spk").read_text().split())] * 2))
    heard = waves(an4["train"])
    right = [trained(wave)[0][0] == said[name] for name, wave in heard.items()]
    assert np.mean(right) > 0.75  # of what it was taught
    # Its file tells labels too.
    from espnet_hra.commands import tasks

    tasks.main(["list", "--model", str(exp)])
    assert f"labels {', '.join(speakers)}" in capsys.readouterr().out
    tasks.main(["export", "spk", "--model", str(exp), "--out", str(tmp_path / "s.st")])
    assert taskfile.read(tmp_path / "s.st").labels == tuple(speakers)
    text = load(exp / "valid.acc_classify.best.pth")["encoder.adapter.heads.spk"]
    assert torch.isfinite(text).all()
    bad = labelled(an4, tmp_path / "bad")
    path = bad["train"] / "text"
    path.write_text(path.read_text().replace(f" {speakers[0]}\n", " nobody\n"))
    with pytest.raises(DataError, match="'nobody' is none of the labels"):
        train(
            bad,
            base,
            tmp_path / "exp2",
            encoder_conf={**conf, "tasks": ["female", "male", record]},
            check_data=True,
        )


def test_what_is_no_label_is_refused_where_it_is_read():
    given = classifying.Labels(lambda uid, data: dict(data), {"lang": LABELS})
    found = given("a", {"text": "fr", "utt2task": "lang"})
    assert found["text"].tolist() == [1]
    assert given("a", {"text": "xx", "utt2task": "female"})["text"] == "xx"
    with pytest.raises(DataError, match="a: 'xx' is no label of the task 'lang'"):
        given("a", {"text": "xx", "utt2task": "lang"})


def test_other_espnet_tasks_tell_no_labels():
    records = read_records(TASKS)
    classifying.check("asr", records)
    with pytest.raises(ConfigError, match="lang, who.*asr tell labels.*is of st"):
        classifying.check("st", records)


def test_where_only_texts_can_be_written_a_task_of_labels_is_refused(tmp_path):
    encoder = as_if_trained(adapted_encoder("conformer", TASKS))
    encoder.save_task("lang", tmp_path / "lang.safetensors")
    shapes = encoder.adapter.heads.layout.shapes
    with pytest.raises(TaskError, match="tells labels .en, fr, it., and only texts"):
        taskfile.load(tmp_path / "lang.safetensors", shapes, encoder.identity())


def test_more_labels_than_a_file_may_name_are_refused():
    encoder = adapted_encoder("conformer", [])
    encoder.add_task("who", [f"{'x' * 100}{i}" for i in range(1000)])
    with pytest.raises(TaskError, match="1,000 labels take .* bytes and may take"):
        encoder.save_task("who", "/nowhere")


def test_an_encoder_s_pass_takes_both_kinds_together():
    encoder = as_if_trained(adapted_encoder("conformer", TASKS))
    xs, lens = batch(3)
    with encoder.use_task(["female", "lang", "who"]):
        mixed = encoder(xs, lens)[0]
    for i, name in enumerate(["female", "lang", "who"]):
        with encoder.use_task(name):
            one = encoder(xs, lens)[0][i]
        torch.testing.assert_close(mixed[i], one, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ rates of labels


def write(path: Path, lines: dict[str, str]) -> str:
    path.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    return str(path)


def test_labels_are_scored_beside_texts(tmp_path, capsys):
    from espnet_hra.commands import report, score

    tasks = tmp_path / "tasks"
    tasks.write_text(f"female\n{json.dumps(LANG)}\n")
    said = {"f1": "one two", "l1": "en", "l2": "fr", "l3": "fr", "l4": "it"}
    heard = {"f1": "one too", "l1": "en", "l2": "it", "l3": "fr", "l4": "it"}
    of = {u: "female" if u[0] == "f" else "lang" for u in said}
    ref = write(tmp_path / "ref", said)
    common = ["--ref", f"test={ref}", "--out_dir", str(tmp_path / "out")]
    common += ["--utt2task", write(tmp_path / "utt2task", of), "--tasks", str(tasks)]
    frozen = write(tmp_path / "frozen", {"f1": "one"})
    (tmp_path / "out").mkdir()
    assert score.main([*common, "--method", "none", "--hyp", f"test={frozen}"]) == 0
    sizes = ["--shared_params", "5", "--task_params", "7", "--seed", "1"]
    hyp = ["--hyp", f"test={write(tmp_path / 'hyp', heard)}"]
    before = ["--before", f"test={frozen}"]
    assert score.main([*common, "--method", "hra", *sizes, *hyp, *before]) == 0
    rows = (tmp_path / "out" / "results.tsv").read_text().splitlines()
    assert "hra\tlang\ttest\t1\t5\t7\t4\t4\tnan\t25.00" in rows
    assert not any(row.startswith("none\tlang") for row in rows)
    page = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "|hra|1|5|lang|7|4|25.0 (75.0)|" in page
    # Means and examples are those of the texts.
    assert "|hra|1|5|7|50.0|50.0|" in page and "|it|" not in page
    assert "one two" in page
    again = [str(tmp_path / "out" / "results.tsv")]
    assert report.main(again) == 0  # from the tables alone
    assert "|25.0 (75.0)|" in (tmp_path / "out" / "RESULTS.md").read_text()
    capsys.readouterr()


def test_the_recipe_s_data_get_utterances_with_labels(an4, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "local"))
    import format_wav_scp

    data = an4["train"].parent
    for part in ("train", "dev", "test"):
        lines = (data / part / "utt2spk").read_text().splitlines()
        spoken = [f"{line.split()[0]} {line.split()[1][0]}x" for line in lines]
        (tmp_path / part).mkdir()
        (tmp_path / part / "utt2sex").write_text("\n".join(spoken) + "\n")
    options = ["--data", str(data), "--sets", "train", "dev", "test", "--nj", "1"]
    labels = ["--labels", *(str(tmp_path / part) for part in ("train", "dev", "test"))]
    out = ["--dump", str(tmp_path / "dump")]
    argv = [*options, *out, "--classify", "sex", "spk", *labels]
    assert format_wav_scp.main(argv) == 0
    records = read_records(str(tmp_path / "dump" / "records"))
    assert [r.name for r in records] == ["female", "male", "sex", "spk"]
    assert records[2].labels == ("fx", "mx")
    assert records[3].labels == ("fash", "fbbh", "mwhw")
    lists = {}
    for name in ("text", "utt2task", "wav.scp"):
        lines = (tmp_path / "dump" / "test" / name).read_text().splitlines()
        lists[name] = dict(line.split(None, 1) for line in lines)
    # Nobody of the test set speaks in training: there is nothing to tell them by.
    assert set(lists["utt2task"].values()) == {"female", "male", "sex"}
    for utterance, task in lists["utt2task"].items():
        if task == "sex":
            own = utterance.removeprefix("sex-")
            assert lists["wav.scp"][utterance] == lists["wav.scp"][own]
            assert lists["text"][utterance] in ("fx", "mx")
    for wrong, message in (("age", "there is no .*utt2age"), ("male", "of this name")):
        if wrong == "male":
            for part in ("train", "dev", "test"):
                shutil.copy(data / part / "utt2spk", tmp_path / part / "utt2male")
        with pytest.raises(SystemExit, match=message):
            format_wav_scp.main([*options, *out, "--classify", wrong, *labels])


# ------------------------------------------------------------------------- Whisper


def test_whisper_tells_labels_as_well(an4, tmp_path):
    pytest.importorskip("whisper")
    from conftest import make_base
    from test_whisper import STOCK, TOY

    from espnet_hra.espnet.whisper import without_weights
    from espnet_hra.whisper import tokens
    from espnet_hra.whisper.sizes import written

    conf = {"whisper_model": written(TOY)}
    listed = tmp_path / "tokens.txt"
    listed.write_text("".join(f"{token}\n" for token in tokens.token_list(TOY)))
    known = {"whisper_language": None, "whisper_task": "transcribe"}
    stock = {**STOCK, "token_type": "whisper_multilingual"}
    stock |= {"bpemodel": "whisper_multilingual", "preprocessor_conf": known}
    stock |= {"encoder_conf": conf, "decoder_conf": conf}
    with without_weights(stock):
        base = make_base(tmp_path / "base", listed, stock)
    data = labelled(an4, tmp_path / "data")
    record = {"name": "spk", "head": "classify", "labels": ["fash", "fbbh", "mwhw"]}
    own = {"adapter": "hra", "adapter_conf": {"controller_size": 8, "decoder": True}}
    exp = train(
        data,
        base,
        tmp_path / "exp",
        max_epoch=2,
        batch_size=8,
        keep_nbest_models=1,
        best_model_criterion=[["valid", "acc", "max"]],
        encoder_conf={**own, "tasks": ["female", "male", record]},
        languages={"female": "en", "male": "en"},  # no language is one of the labels
        check_data=True,
    )
    speech2text = espnet_hra.Speech2Text.from_pretrained(exp)
    heard = list(waves(an4["test"]).values())[:2]
    ((label, *_),), ((text, *_),) = speech2text(heard, task=["spk", "female"])
    assert label in record["labels"] and text not in record["labels"]
    assert speech2text(heard[0], task="spk")[0][0] == label
    long = np.tile(heard[0], 20)  # is heard in windows
    assert speech2text(long, task="spk")[0][0] in record["labels"]


def test_labels_say_nothing_of_how_texts_are_written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "local"))
    import fold_decoded

    tasks = {"t": "female", "s": "sex", "d": "female", "e": "sex"}
    listed = write(tmp_path / "utt2task", tasks)
    like = write(tmp_path / "train", {"t": "one", "s": "F-M"})
    heard = write(tmp_path / "heard", {"d": "One-two", "e": "F-M"})
    argv = [heard, "--like", like, "--labels", "sex", "--utt2task", listed]
    assert fold_decoded.main(argv) == 0
    assert Path(heard).read_text() == "d one two\ne F-M\n"


def test_a_stream_is_written_down_and_tells_no_labels(an4, tmp_path):
    from conftest import BASE_CONFIG, make_base

    conf = {
        **{k: BASE_CONFIG["encoder_conf"][k] for k in ("output_size", "num_blocks")},
        "attention_heads": 2,
        "linear_units": 48,
        "block_size": 16,
        "hop_size": 8,
        "look_ahead": 4,
    }
    config = {**BASE_CONFIG, "encoder": "contextual_block_conformer"}
    base = make_base(tmp_path / "b", an4["tokens"], {**config, "encoder_conf": conf})
    folder = make_adaptation(tmp_path / "exp", base, TASKS)
    stream = espnet_hra.Speech2TextStreaming.from_pretrained(folder)
    stream.set_task("female")
    with pytest.raises(TaskError, match="'lang' tells labels, of whole utterances"):
        stream.set_task("lang")


def test_a_server_s_answer_of_such_a_task_is_its_label(model, an4):
    pytest.importorskip("fastapi")
    from serving import ask, serving

    from espnet_hra.serve.engine import Engine

    path = (an4["test"] / "wav.scp").read_text().split()[1]
    speech2text = espnet_hra.Speech2Text.from_pretrained(model, ctc_greedy=True)
    (wave, *_) = waves(an4["test"]).values()
    expected = speech2text(wave, task="lang")[0][0]
    with serving(Engine(speech2text)) as url:
        assert ask(url, path, "lang").json()["text"] == expected
        whole = ask(url, path, "lang", response_format="verbose_json")
        assert whole.status_code == 200 and whole.json()["text"] == expected


def test_a_task_s_file_and_a_pack_take_the_labels_along(model, an4, tmp_path):
    from espnet_hra.commands import pack, tasks

    copy = tmp_path / "exp"
    shutil.copytree(model, copy)
    (wave, *_) = waves(an4["test"]).values()
    usual = espnet_hra.Speech2Text.from_pretrained(copy, ctc_greedy=True)
    expected = usual(wave, task="lang")[0][0]
    file = str(tmp_path / "lang.safetensors")
    tasks.main(["export", "lang", "--model", str(copy), "--out", file])
    tasks.main(["remove", "lang", "--model", str(copy)])
    tasks.main(["import", file, "--model", str(copy)])
    again = espnet_hra.Speech2Text.from_pretrained(copy, ctc_greedy=True)
    assert again.store.version("lang") is not None  # from its file now
    assert again(wave, task="lang")[0][0] == expected
    mixed = again([wave, wave], task=["lang", "female"])
    assert mixed[0][0][0] == expected
    out = tmp_path / "pack.zip"
    argv = ["--model", str(copy), "--tasks", "all", "--name", "x", "--out", str(out)]
    assert not pack.main(argv)
    opened = espnet_hra.Speech2Text.from_pretrained(str(out), ctc_greedy=True)
    assert opened(wave, task="lang")[0][0] == expected
