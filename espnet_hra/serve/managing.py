"""Tasks that come and go while others are served."""

import hmac
import tempfile
from pathlib import Path

from espnet_hra.errors import TaskError
from espnet_hra.names import TASK_NAME
from espnet_hra.serve.engine import Engine
from espnet_hra.serve.problems import Problem
from espnet_hra.serve.settings import AUTO, Settings


class Manager:
    """Puts task files into the folder that the engine's tasks come from.

    Args:
        engine: Whose tasks they are.
        settings: What the server is told.
    """

    def __init__(self, engine: Engine, settings: Settings):
        self._engine, self._settings = engine, settings

    def check(self, authorization: str) -> None:
        """Let those pass who have the token.

        Args:
            authorization: The header.

        Raises:
            Problem: They do not, or nobody has.
        """
        if not self._settings.token:
            raise Problem(
                403,
                "tasks cannot be changed here: the server was started without a token "
                "(ESPNET_HRA_TOKEN, or --token_file)",
                code="tasks_are_fixed",
            )
        kind, _, given = authorization.partition(" ")
        right = hmac.compare_digest(
            given.strip().encode(), self._settings.token.encode()
        )
        if kind.lower() != "bearer" or not right:
            raise Problem(
                401,
                "changing tasks needs the header Authorization: Bearer TOKEN with the "
                "server's token",
                code="invalid_token",
            )

    def put(self, name: str, content: bytes) -> bool:
        """Add a task or replace it, once it is verified.

        Args:
            name: Its name, which the file must say too.
            content: Of its file.

        Returns:
            Whether it took the place of another.

        Raises:
            Problem: The name is not possible, the file is damaged, or made for another
                model, or the folder cannot be written to.
        """
        engine = self._engine
        if not TASK_NAME.fullmatch(name) or name in (AUTO, self._settings.name):
            raise Problem(
                400,
                f"{name[:140]!r} cannot be the name of a task: use up to 128 letters, "
                "digits, dots, underscores and hyphens, and neither "
                f"{AUTO} nor {self._settings.name}",
                "name",
                "invalid_name",
            )
        if not engine.adapted or engine.store is None:
            raise Problem(
                403, "this model has no adapter and no tasks", code="no_tasks"
            )
        with tempfile.TemporaryDirectory(prefix="espnet_hra.") as folder:
            path = Path(folder) / "task.safetensors"
            path.write_bytes(content)
            try:
                found = engine.encoder.read_task(path, said="the file").name
                if found != name:
                    raise TaskError(f"the file holds the task {found!r}, not {name!r}")
            except TaskError as e:
                raise Problem(400, str(e), "file", "invalid_task_file") from e
        replaced = engine.knows(name)
        try:
            engine.store.put(content, name, replace=True)
        except TaskError as e:
            raise _fixed(e) from e
        return replaced

    def remove(self, name: str) -> None:
        """Forget a task.

        Raises:
            Problem: There is none of this name, or the folder cannot be written to.
        """
        engine = self._engine
        problem = Problem(
            404, f"there is no task {name[:140]!r}", "name", "model_not_found"
        )
        if not TASK_NAME.fullmatch(name) or not engine.knows(name):
            raise problem
        assert engine.store is not None, "a model with tasks has a folder for them"
        try:
            engine.store.remove(name, in_checkpoint=name in engine.own_tasks)
        except TaskError as e:
            if engine.knows(name):
                raise _fixed(e) from e
            raise problem from e  # someone else was quicker


def _fixed(error: TaskError) -> Problem:
    """The folder of tasks cannot be written to."""
    return Problem(503, f"the task is as it was: {error}", code="tasks_unwritable")
