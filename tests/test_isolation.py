"""Isolation: whatever happens to one task, the others stay what they are.

A machine does to tasks what users do, in any order, and looks at all others after each
step: their files and the outputs with them are bit-identical. For every method.
"""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from small_encoders import METHOD_CONFS, adapted_encoder, as_if_trained, batch, loss_of

from espnet_hra.errors import TaskError
from espnet_hra.tasks import file as taskfile
from espnet_hra.tasks.store import TaskStore

NAMES = ("a", "it.carlo", "keys", "train", "x-1")
METHODS = [name for name in METHOD_CONFS if name != "none"]

names = st.sampled_from(NAMES)


class Tasks(RuleBasedStateMachine):
    """An encoder with tasks, and what each of them must be."""

    method = "hra"

    @initialize()
    def begin(self):
        """Two tasks, and a controller that does not learn, as for new tasks."""
        self.folder = tempfile.TemporaryDirectory()
        self.store = TaskStore(Path(self.folder.name) / "store")
        self.encoder = as_if_trained(
            adapted_encoder("transformer", NAMES[:2], adapter=self.method), scale=0.1
        )
        for parameter in self.encoder.adapter.shared_parameters().values():
            parameter.requires_grad_(False)
        self.encoder.attach_store(self.store, max_loaded=1)
        self.optimizer = None
        self.files: dict[str, Path] = {}
        self.expected = {}
        self.plain = self.output(None)
        self.touch(*NAMES)

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    # ------------------------------------------------------------------ looking

    def output(self, name):
        with torch.no_grad(), self.encoder.use_task(name):
            return self.encoder(*batch(2))[0]

    def look(self, name):
        """The file and the output of a task; None if there is none."""
        if name not in self.encoder.tasks:
            return None
        tensors = self.encoder.adapter.heads.tensors(name)
        content = taskfile.pack(
            name, tensors, self.encoder.identity(), {"date": "2026-01-31"}
        )
        return content, self.output(name)

    def touch(self, *changed):
        """These tasks were changed; from now on they are what they are now."""
        self.expected.update({name: self.look(name) for name in changed})

    @invariant()
    def untouched_tasks_are_what_they_were(self):
        for name, expected in self.expected.items():
            found = self.look(name)
            assert (found is None) == (expected is None), name
            if expected is not None:
                assert found[0] == expected[0], f"the file of {name}"
                assert torch.equal(found[1], expected[1]), f"the output with {name}"
        if self.expected:
            assert torch.equal(self.output(None), self.plain), "the backbone"

    def own(self):
        return self.encoder.adapter.heads.own

    # ------------------------------------------------------------------ changing

    @rule(name=names)
    def add(self, name):
        if name in self.encoder.tasks:
            with pytest.raises(TaskError, match="exists already"):
                self.encoder.add_task(name)
            return
        self.encoder.add_task(name)
        self.optimizer = None
        self.touch(name)

    @precondition(lambda self: self.own())
    @rule(data=st.data(), rate=st.sampled_from([0.01, 1.0]))
    def train(self, data, rate):
        """Steps of AdamW over everything, whose momentum outlives a task's turn."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                self.encoder.parameters(), lr=rate, weight_decay=0.1
            )
        some = data.draw(st.lists(st.sampled_from(self.own()), min_size=1, max_size=2))
        self.encoder.train()
        for _ in range(2):
            self.optimizer.zero_grad()
            for name in dict.fromkeys(some):
                with self.encoder.use_task(name):
                    loss_of(self.encoder(*batch(2))[0]).backward()
            self.optimizer.step()
        self.encoder.eval()
        self.touch(*some)

    @precondition(lambda self: self.own())
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(self.own()))
        self.encoder.remove_task(name)
        self.optimizer = None
        self.touch(name)

    @precondition(lambda self: self.encoder.tasks)
    @rule(data=st.data())
    def export(self, data):
        name = data.draw(st.sampled_from(self.encoder.tasks))
        self.files[name] = Path(self.folder.name) / f"{name}.file"
        self.encoder.save_task(name, self.files[name])

    @precondition(lambda self: self.files)
    @rule(data=st.data(), replace=st.booleans())
    def load(self, data, replace):
        name = data.draw(st.sampled_from(sorted(self.files)))
        if name in self.own() and not replace:
            with pytest.raises(TaskError, match="exists already"):
                self.encoder.load_task(self.files[name])
            return
        self.encoder.load_task(self.files[name], replace=replace)
        self.optimizer = None
        self.touch(name)

    @precondition(lambda self: self.own())
    @rule(data=st.data(), new=names)
    def rename(self, data, new):
        """A file of another name with the same values, then the old one goes."""
        old = data.draw(st.sampled_from(self.own()))
        if new in self.encoder.tasks:
            return
        tensors = self.encoder.adapter.heads.tensors(old)
        before = self.output(old)
        path = Path(self.folder.name) / "renamed"
        path.write_bytes(taskfile.pack(new, tensors, self.encoder.identity()))
        self.encoder.load_task(path)
        self.encoder.remove_task(old)
        self.optimizer = None
        assert torch.equal(self.output(new), before)
        self.touch(old, new)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def put_into_the_folder(self, data):
        name = data.draw(st.sampled_from(sorted(self.files)))
        self.store.put(self.files[name].read_bytes(), name, replace=True)
        self.touch(name)

    @precondition(lambda self: self.store.names)
    @rule(data=st.data())
    def remove_from_the_folder(self, data):
        name = data.draw(st.sampled_from(self.store.names))
        self.store.remove(name)
        self.touch(name)

    @rule(name=names, damage=st.sampled_from(["half", "flipped", "other name"]))
    def a_damaged_file_is_refused(self, name, damage):
        if name not in self.files:
            return
        content = bytearray(self.files[name].read_bytes())
        path = Path(self.folder.name) / "damaged"
        if damage == "half":
            content = content[: len(content) // 2]
        elif damage == "flipped":
            content[-5] ^= 4
        else:
            content = content.replace(b"espnet_hra", b"espnet_hrx")
        path.write_bytes(content)
        with pytest.raises(TaskError):
            self.encoder.load_task(path, replace=True)


def machine(method: str) -> type[Tasks]:
    return type(f"Tasks_{method}", (Tasks,), {"method": method})


CHECKS = list(HealthCheck)


@pytest.mark.parametrize("method", METHODS)
def test_a_change_of_one_task_leaves_all_others_as_they_are(method):
    run_state_machine_as_test(
        machine(method),
        settings=settings(
            max_examples=2,
            stateful_step_count=8,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=CHECKS,
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_any_long_sequence_of_changes_leaves_all_others_as_they_are(method):
    run_state_machine_as_test(
        machine(method),
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=CHECKS,
        ),
    )


def test_the_name_of_a_task_whose_file_has_just_gone_is_free(tmp_path):
    """Its head may still be in memory; nobody has asked for it since."""
    encoder = adapted_encoder("transformer", NAMES[:1])
    encoder.save_task("a", tmp_path / "a.safetensors")
    encoder.remove_task("a")
    store = TaskStore(tmp_path / "store")
    store.put((tmp_path / "a.safetensors").read_bytes(), "a")
    encoder.attach_store(store)
    with torch.no_grad(), encoder.use_task("a"):
        encoder(*batch(2))
    with pytest.raises(TaskError, match="exists already"):
        encoder.add_task("a")
    store.remove("a")
    with pytest.raises(TaskError, match="unknown task 'a'"):
        encoder.remove_task("a")
    encoder.add_task("a")
    assert encoder.tasks == ("a",)
