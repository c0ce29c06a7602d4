"""Choosing, adding and removing tasks."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from small_encoders import (
    adapted_encoder,
    as_if_trained,
    batch,
    gradients,
    loss_of,
    same_bits,
    stock_encoder,
)

from espnet_hra import TaskError


@pytest.fixture
def encoder():
    """A Conformer with three trained tasks and no choice."""
    return as_if_trained(adapted_encoder("conformer", ["a", "b", "it.carlo"]))


def output(encoder, size=2):
    with torch.no_grad():
        return encoder(*batch(size))[0]


def output_of(encoder, choice, size=2):
    with encoder.use_task(choice):
        return output(encoder, size)


# ------------------------------------------------------------------------ choosing


def test_task_error_is_a_value_error():
    assert issubclass(TaskError, ValueError)


def test_without_any_task_the_backbone_runs():
    encoder = adapted_encoder("conformer")
    assert encoder.tasks == () and encoder.chosen_task is None
    assert same_bits(encoder(*batch()), stock_encoder("conformer")(*batch()))


def test_a_single_task_is_chosen_by_itself():
    encoder = as_if_trained(adapted_encoder("conformer", ["only"]))
    assert encoder.chosen_task == "only"
    assert torch.equal(output(encoder), output_of(encoder, "only"))
    assert not torch.equal(output(encoder), output_of(encoder, None))


def test_several_tasks_and_no_choice_is_an_error_that_lists_them(encoder):
    with pytest.raises(TaskError, match="a, b, it.carlo"):
        encoder(*batch())
    with pytest.raises(TaskError, match="a, b, it.carlo"):
        _ = encoder.chosen_task


def test_a_second_task_ends_the_choice_by_itself():
    encoder = adapted_encoder("conformer", ["only"])
    output(encoder)
    encoder.add_task("another")
    with pytest.raises(TaskError, match="only, another"):
        output(encoder)


def test_set_task_holds_until_it_is_changed(encoder):
    seen = []
    for choice in ("a", "b", ["a", "b"], None):
        encoder.set_task(choice)
        seen.append(output(encoder))
        assert torch.equal(seen[-1], output(encoder))
        assert torch.equal(seen[-1], output_of(encoder, choice))
    one, other, both, plain = seen
    torch.testing.assert_close(both[0], one[0])
    torch.testing.assert_close(both[1], other[1])
    assert not torch.allclose(one, other)
    assert torch.equal(plain, stock_encoder("conformer")(*batch(2))[0])


@pytest.mark.parametrize("choice", ["c", ["a", "c"], ["c", "c"], "A", "", "it/carlo"])
def test_an_unknown_task_is_refused_and_the_choice_stays(encoder, choice):
    encoder.set_task("a")
    unknown = choice if isinstance(choice, str) else "c"
    for refuse in (encoder.set_task, encoder.use_task):
        with pytest.raises(TaskError) as error:
            refuse(choice)
        assert repr(unknown) in str(error.value)
        assert "a, b, it.carlo" in str(error.value)
    assert encoder.chosen_task == "a"


def test_an_unknown_task_of_an_encoder_without_tasks_says_that_there_are_none():
    with pytest.raises(TaskError, match="'x'.*none"):
        adapted_encoder("conformer").set_task("x")


@pytest.mark.parametrize("choice", [[], [None], ["a", None], [1], 1, b"a", object()])
def test_what_is_no_task_is_refused(encoder, choice):
    for refuse in (encoder.set_task, encoder.use_task):
        with pytest.raises(TaskError):
            refuse(choice)


@pytest.mark.parametrize("choice", [{"a", "b"}, {"a": 0, "b": 1}], ids=["set", "dict"])
def test_names_without_an_order_are_refused(encoder, choice):
    with pytest.raises(TaskError):
        encoder.set_task(choice)


@pytest.mark.parametrize("choice", [["a"], ["a", "b", "a"]])
def test_a_list_of_another_length_than_the_batch_is_refused(encoder, choice):
    encoder.set_task(choice)
    with pytest.raises(TaskError, match=f"{len(choice)}.*2"):
        output(encoder, 2)
    assert output(encoder, len(choice)).size(0) == len(choice)


def test_changing_a_list_after_it_was_chosen_has_no_effect(encoder):
    names = ["a", "b"]
    encoder.set_task(names)
    before = output(encoder)
    names[0] = "b"
    assert torch.equal(output(encoder), before)


def test_use_task_wins_over_set_task_and_nests(encoder):
    encoder.set_task("a")
    with encoder.use_task("b"):
        assert encoder.chosen_task == "b"
        encoder.set_task("it.carlo")
        assert encoder.chosen_task == "b"
        with encoder.use_task(None):
            assert encoder.chosen_task is None
            with encoder.use_task(["a", "b"]):
                assert encoder.chosen_task == ("a", "b")
            assert encoder.chosen_task is None
        assert encoder.chosen_task == "b"
    assert encoder.chosen_task == "it.carlo"


def test_use_task_ends_with_an_exception(encoder):
    encoder.set_task("a")
    with pytest.raises(KeyError), encoder.use_task("b"):
        raise KeyError
    assert encoder.chosen_task == "a"


def test_use_task_concerns_one_encoder(encoder):
    other = copy.deepcopy(encoder)
    encoder.set_task("a")
    other.set_task("a")
    with encoder.use_task("b"):
        assert (encoder.chosen_task, other.chosen_task) == ("b", "a")


def test_threads_with_different_tasks_do_not_meet(encoder):
    encoder.set_task("it.carlo")
    expected = {name: output_of(encoder, name) for name in ("a", "b", None)}
    default, barrier, failures = output(encoder), threading.Barrier(3), []

    def work(name):
        barrier.wait()
        for _ in range(25):
            with encoder.use_task(name):
                if not torch.equal(output(encoder), expected[name]):
                    failures.append(name)
            if not torch.equal(output(encoder), default):
                failures.append("default")

    threads = [threading.Thread(target=work, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_block_is_not_seen_by_other_threads(encoder):
    encoder.set_task("a")
    seen = []
    with encoder.use_task("b"):
        thread = threading.Thread(target=lambda: seen.append(encoder.chosen_task))
        thread.start()
        thread.join()
    assert seen == ["a"]


# ------------------------------------------------------------- adding and removing


def test_adding_a_task_changes_no_other(encoder):
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    outputs = {name: output_of(encoder, name) for name in encoder.tasks}
    encoder.add_task("es_allison")
    assert encoder.tasks == ("a", "b", "it.carlo", "es_allison")
    after = encoder.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    for name, expected in outputs.items():
        assert torch.equal(output_of(encoder, name), expected)
    assert torch.equal(output_of(encoder, "es_allison"), output_of(encoder, None))


def test_an_existing_name_cannot_be_added(encoder):
    before = encoder.state_dict()["adapter.heads.a"].clone()
    with pytest.raises(TaskError, match="'a'.*exists"):
        encoder.add_task("a")
    assert torch.equal(encoder.state_dict()["adapter.heads.a"], before)


def test_removing_a_task_changes_no_other(encoder):
    expected = output_of(encoder, "b")
    encoder.remove_task("it.carlo")
    encoder.remove_task("a")
    assert encoder.tasks == ("b",)
    assert not any("carlo" in key for key in encoder.state_dict())
    assert torch.equal(output(encoder), expected)


def test_an_unknown_task_cannot_be_removed(encoder):
    with pytest.raises(TaskError, match="'c'.*a, b, it.carlo"):
        encoder.remove_task("c")


@pytest.mark.parametrize("choice", ["a", ["a", "b"], ["b", "a"]])
def test_removing_the_chosen_task_unsets_the_choice(encoder, choice):
    encoder.set_task(choice)
    encoder.remove_task("a")
    with pytest.raises(TaskError, match="b, it.carlo"):
        output(encoder)


@pytest.mark.parametrize("choice", ["b", ["b", "it.carlo"], None])
def test_removing_another_task_keeps_the_choice(encoder, choice):
    encoder.set_task(choice)
    expected = output(encoder)
    encoder.remove_task("a")
    assert torch.equal(output(encoder), expected)


def test_a_task_removed_within_its_block_is_an_error_not_the_backbone(encoder):
    with encoder.use_task("a"):
        encoder.remove_task("a")
        with pytest.raises(TaskError, match="'a'"):
            output(encoder)


def test_a_task_added_again_is_a_new_one(encoder):
    encoder.remove_task("a")
    encoder.add_task("a")
    assert torch.equal(output_of(encoder, "a"), output_of(encoder, None))


# --------------------------------------------------------------------------- names

ODD_NAMES = (
    *("keys", "type", "train", "training", "forward", "size", "names", "layout"),
    *("parameters", "add", "put", "it.carlo", "it-carlo", "it_carlo", "0", "a.b.c"),
    *("A", "heads", "x" * 128, "a..b", "end.", "end-"),
)


def test_odd_but_valid_names_work_like_any_other(tmp_path):
    encoder = adapted_encoder("conformer", list(ODD_NAMES[::2]))
    for name in ODD_NAMES[1::2]:
        encoder.add_task(name)
    assert sorted(encoder.tasks) == sorted(ODD_NAMES)
    as_if_trained(encoder)
    restored = adapted_encoder("conformer", list(ODD_NAMES))
    restored.load_state_dict(encoder.state_dict())
    copied = copy.deepcopy(encoder)
    for name in ODD_NAMES:
        expected = output_of(encoder, name)
        assert torch.equal(output_of(restored, name), expected)
        assert torch.equal(output_of(copied, name), expected)
    encoder.train()
    with encoder.use_task(["keys", "it.carlo"]):
        loss_of(encoder(*batch(2))[0]).backward()
    assert {n for n in gradients(encoder) if "heads" in n} == {
        "adapter.heads.keys",
        "adapter.heads.it/carlo",
    }
    encoder.double().eval().float()
    for name in ODD_NAMES:
        encoder.save_task(name, tmp_path / "file")
        before = output_of(encoder, name)
        encoder.remove_task(name)
        assert encoder.load_task(tmp_path / "file") == name
        assert torch.equal(output_of(encoder, name), before)


INVALID_NAMES = (
    *("", " ", ".a", "-a", "_a", "a b", "a/b", "a\n", "\na", "é", "a,b", "a:b"),
    *("x" * 129, "../a", None, 1, 2.5, False, b"a", ["a"]),
)


@pytest.mark.parametrize("name", INVALID_NAMES, ids=repr)
def test_invalid_names_are_refused(name):
    encoder = adapted_encoder("conformer", ["a"])
    with pytest.raises(TaskError, match="not a task name"):
        encoder.add_task(name)
    with pytest.raises(TaskError, match="not a task name"):
        adapted_encoder("conformer", [name])
    assert encoder.tasks == ("a",)


@pytest.mark.parametrize("tasks", [None, [], (), ["a"], ("a", "b")])
def test_tasks_of_the_configuration_may_be_a_list_or_empty(tasks):
    assert adapted_encoder("conformer", tasks).tasks == tuple(tasks or ())


@pytest.mark.parametrize("as_path", [True, False])
def test_tasks_may_come_from_a_file(tmp_path, as_path):
    path = tmp_path / "tasks.txt"
    path.write_bytes(b"fr_june\r\nit.carlo  \n\n  es\n")
    encoder = adapted_encoder("conformer", path if as_path else str(path))
    assert encoder.tasks == ("fr_june", "it.carlo", "es")


def test_an_empty_file_is_no_task(tmp_path):
    (tmp_path / "tasks.txt").write_text("\n")
    assert adapted_encoder("conformer", str(tmp_path / "tasks.txt")).tasks == ()


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a\nb\na\n", b"a b\n"])
def test_a_bad_file_of_tasks_is_refused(tmp_path, content):
    path = tmp_path / "tasks.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TaskError):
        adapted_encoder("conformer", str(path))


def test_names_that_stand_twice_are_refused():
    with pytest.raises(TaskError, match="twice.*b"):
        adapted_encoder("conformer", ["a", "b", "c", "b"])


def test_a_single_name_instead_of_a_list_is_refused_with_a_hint():
    with pytest.raises(TaskError, match="fr_june.*list"):
        adapted_encoder("conformer", "fr_june")


# ------------------------------------------------------- state_dict, copies, pickle


@pytest.mark.parametrize(
    "tasks, error", [(["a", "b", "it.carlo", "c"], "Missing"), (["a"], "Unexpected")]
)
def test_a_checkpoint_with_other_tasks_is_refused(encoder, tasks, error):
    other = adapted_encoder("conformer", tasks)
    with pytest.raises(RuntimeError, match=f"{error}.*heads"):
        other.load_state_dict(encoder.state_dict(), strict=True)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("choice", ["unset", "a", ("a", "b"), None])
def test_a_copy_has_the_tasks_the_choice_and_parameters_of_its_own(
    encoder, copied, choice, tmp_path
):
    if choice != "unset":
        encoder.set_task(choice)
    output_of(encoder, "a")
    other = copied(encoder)
    assert type(other) is type(encoder) and other.tasks == encoder.tasks
    if choice == "unset":
        with pytest.raises(TaskError, match="no task was chosen"):
            output(other)
    else:
        assert other.chosen_task == choice
    expected = output_of(encoder, "a")
    assert torch.equal(output_of(other, "a"), expected)
    as_if_trained(other, seed=8)
    assert torch.equal(output_of(encoder, "a"), expected)
    assert not torch.equal(output_of(other, "a"), expected)
    other.add_task("new")
    assert "new" not in encoder.tasks
    other.save_task("a", tmp_path / "file")
    with pytest.raises(TaskError, match="controller"):
        encoder.load_task(tmp_path / "file", replace=True)


# ------------------------------------------------------------------ DataParallel


def test_data_parallel_is_refused_with_the_way_out(encoder):
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        encoder._replicate_for_data_parallel()


# ---------------------------------------------------------------------- many tasks


def test_ten_thousand_tasks_and_only_those_of_the_batch_learn():
    names = [f"t{i}" for i in range(10_000)]
    encoder = adapted_encoder("conformer", names).train()
    assert encoder.tasks == tuple(names)
    before = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1)
    with encoder.use_task(["t17", "t9999"]):
        loss_of(encoder(*batch(2))[0]).backward()
    torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    optimizer.step()
    moved = {n for n, p in encoder.named_parameters() if not torch.equal(p, before[n])}
    heads = {n for n in moved if ".heads." in n}
    assert heads == {"adapter.heads.t17", "adapter.heads.t9999"}
    assert {n for n in gradients(encoder) if ".heads." in n} == heads
    with pytest.raises(TaskError, match="10,000 in all") as error:
        output_of(encoder, "t10000")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_keeps_the_tasks_of_an_encoder_alive_that_is_gone(grad):
    encoder = adapted_encoder("conformer", ["a", "b"])
    with torch.set_grad_enabled(grad), encoder.use_task(["a", "b"]):
        encoder(*batch(2))
    vectors = [weakref.ref(encoder.adapter.heads.vector(name)) for name in "ab"]
    del encoder
    gc.collect()
    assert [vector() for vector in vectors] == [None, None]


def test_a_task_replaced_in_a_pass_of_another_thread_is_whole():
    """The vector of a pass is the old one or the new one, never a mixture."""
    encoder = as_if_trained(adapted_encoder("conformer", ["a"])).train()
    heads, done = encoder.adapter.heads, threading.Event()
    like = encoder.like()
    values = [
        {k: torch.full_like(v, float(i)) for k, v in heads.tensors("a").items()}
        for i in range(2)
    ]
    heads.put("a", values[0], like)

    def replace():
        for i in range(300):
            heads.put("a", values[i % 2], like)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    seen = set()
    while not done.is_set():
        flat = torch.cat([t.flatten() for t in heads.gather(["a"]).values()])
        assert flat.min() == flat.max()
        seen.add(flat.min().item())
    thread.join()
    assert seen <= {0.0, 1.0}
