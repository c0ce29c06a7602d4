"""From a name to a model: experiment folders, packs and repositories of the hub.

Three kinds of models are opened:

* an experiment folder of an adaptation: its checkpoint holds the adapter only, and its
  configuration names the base;
* a *base pack*: its checkpoint holds base and controller, so that ESPnet itself can
  open it, or of a Whisper the controller alone (see
  :mod:`espnet_hra.espnet.reference`); its tasks, if any, are files in ``tasks``;
* a *task pack*: one or several task files, and ``hra_pack.json`` that names the base.

Whatever is opened, ``tasks`` beside the checkpoint may hold further tasks. Nothing here
needs ESPnet's own tasks, whose import takes seconds;
:mod:`espnet_hra.espnet.building` does.
"""

import dataclasses
import datetime
import functools
import json
import re
from pathlib import Path
from typing import Any

from espnet_hra.errors import BaseModelError, TaskError
from espnet_hra.espnet.base import open_files, read_config
from espnet_hra.espnet.kinds import encoder_of, espnet_task_of
from espnet_hra.files import archive
from espnet_hra.files.config import MAX_BYTES, read_yaml
from espnet_hra.names import PREFIX, TASK_NAME, listing, plain_encoder
from espnet_hra.tasks.config import read_tasks
from espnet_hra.tasks.file import SUFFIX
from espnet_hra.tasks.store import FOLDER, TaskStore
from espnet_hra.whisper.folder import is_whisper

#: The file that says what a pack is, beside ESPnet's meta.yaml.
MANIFEST = "hra_pack.json"
BASE_FORMAT, TASK_FORMAT = "espnet-hra base pack 1", "espnet-hra task pack 1"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


@dataclasses.dataclass(frozen=True)
class Found:
    """A model that was found.

    Attributes:
        source: How it was named.
        config_file: Its configuration.
        model_file: Its checkpoint.
        store: The tasks beside it.
        extra: Task files that came with the name: those of a task pack.
    """

    source: str
    config_file: Path | None
    model_file: Path
    store: TaskStore
    extra: tuple[Path, ...] = ()

    def read_config(self, base: str | None = None) -> dict[str, Any]:
        """Its configuration, in which the files that it names have whole paths.

        Args:
            base: Where the frozen base is, if not where the configuration says.

        Raises:
            BaseModelError: It has none, or it is not readable.
        """
        return read_config(self._config_file(), base)

    @property
    def written(self) -> dict[str, Any]:
        """Its configuration as it is, whether the files that it names are there or not.

        Errors as of the above.
        """
        return read_yaml(self._config_file(), BaseModelError)

    @property
    def espnet_task(self) -> str:
        """The ESPnet task that it is a model of. Errors as of the above."""
        return espnet_task_of(self.written)

    def _config_file(self) -> Path:
        if self.config_file is None:
            raise BaseModelError(
                f"{self.source}: there is no config.yaml beside {self.model_file}; "
                "give the experiment folder"
            )
        return self.config_file

    def languages(self, task: str) -> list[str] | None:
        """The language that the training was told of a task, for its file."""
        told = self.written.get("languages")
        return [str(told[task])] if isinstance(told, dict) and task in told else None

    @property
    def date(self) -> str:
        """The day that its checkpoint was written, e.g. 2026-01-31."""
        changed = self.model_file.stat().st_mtime
        return datetime.datetime.fromtimestamp(changed, datetime.UTC).date().isoformat()


# ---------------------------------------------------------------------------- finding


def find_model(source: str, base: str | None = None) -> Found:
    """Find a model and the tasks beside it.

    Args:
        source: Experiment folder, checkpoint, pack (folder or zip), tag of the model
            zoo, or repository of the hub (``owner/name`` or ``owner/name@revision``).
        base: For task packs, the base instead of the one that they name.

    Raises:
        BaseModelError: There is no such model, or it cannot be trusted.
    """
    folder = pack_folder(source)
    manifest = read_manifest(folder) if folder is not None else None
    if (
        folder is not None
        and manifest is not None
        and manifest["format"] == TASK_FORMAT
    ):
        tag = base or manifest.get("base", {}).get("tag")
        if not tag or tag == source:
            raise BaseModelError(
                f"{source}: this task pack does not name the tag of its base: open the "
                f"base and give task={source!r}"
            )
        found = find_model(str(tag))
        return dataclasses.replace(found, source=source, extra=_task_files(folder))
    if manifest is None:
        opened = open_files(source)
    else:
        opened = open_files(str(folder))
    store_folder = Path(opened.model_file).parent / FOLDER
    store = TaskStore(store_folder)
    if folder is not None and manifest is not None and is_hub_id(source):
        store = TaskStore(
            store_folder,
            _remote_tasks(manifest),
            functools.partial(_hub_file, source, folder),
        )
    return Found(source, opened.config_file, opened.model_file, store)


def opened(
    config_file: Path | str | None, model_file: Path | str | None
) -> tuple[Path | str | None, Path | str | None, dict[str, Any]]:
    """The files that ``Speech2Text`` was given, and what the configuration says.

    Args:
        config_file: The configuration; by default beside `model_file`. Without a
            checkpoint, it may be ``whisper:NAME``.
        model_file: The checkpoint.

    Returns:
        Both files, and the configuration as it is written down.

    Raises:
        BaseModelError: The configuration is missing or not readable.
    """
    if model_file is None and is_whisper(str(config_file)):
        base = open_files(str(config_file))
        config_file, model_file = base.config_file, base.model_file
    if config_file is None and model_file is not None:
        config_file = Path(model_file).parent / "config.yaml"
    config: dict[str, Any] = {}
    if config_file is not None:
        config = read_yaml(Path(config_file), BaseModelError)
        config["encoder"] = plain_encoder(str(encoder_of(config)))
    return config_file, model_file, config


def find_tasks(source: str) -> tuple[Path, ...]:
    """The task files that a name stands for.

    Args:
        source: A task file, a task pack (folder or zip), or its repository on the hub.

    Raises:
        TaskError: There is nothing of that name.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix != ".zip":
        return (path,)
    try:
        folder = pack_folder(source)
    except BaseModelError as e:
        raise TaskError(str(e)) from e
    if folder is None or read_manifest(folder) is None:
        raise TaskError(
            f"{source}: neither a task file ({SUFFIX}) nor a task pack (a folder, zip "
            "or repository of the hub)"
        )
    return _task_files(folder, source if is_hub_id(source) else None)


def is_hub_id(source: str) -> bool:
    """Whether a name can be a repository of the hub, and is no file or folder here."""
    return bool(_HUB_ID.fullmatch(source)) and not Path(source).expanduser().exists()


def pack_folder(source: str) -> Path | None:
    """The folder of a pack; None if the name is not one of a folder, zip or repository.

    Of a repository everything is fetched but the tasks of a base.

    Raises:
        BaseModelError: A zip cannot be trusted, or a repository not be fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".zip":
        return archive.unpack(path, archive.cache())
    if is_hub_id(source) and not _in_zoo(source):
        return _snapshot(source)
    return None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a pack says about itself; None if the folder is none of ours.

    Raises:
        BaseModelError: It is damaged, or of a later version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            manifest = json.loads(file.read(MAX_BYTES))
        tasks = manifest["tasks"]
        names = [n for n, f in tasks.items() if TASK_NAME.fullmatch(n) and _inside(f)]
        if len(names) != len(tasks) or not isinstance(manifest.get("base", {}), dict):
            raise ValueError("names that no pack has")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise BaseModelError(f"{path}: not readable: {e!r:.200}") from e
    if manifest.get("format") not in (BASE_FORMAT, TASK_FORMAT):
        raise BaseModelError(
            f"{path}: expected {BASE_FORMAT!r} or {TASK_FORMAT!r}, found "
            f"{manifest.get('format')!r}: update espnet-hra"
        )
    return manifest


def _inside(name: object) -> bool:
    return isinstance(name, str) and archive.is_safe(name) and name.endswith(SUFFIX)


def _remote_tasks(manifest: dict[str, Any]) -> dict[str, str]:
    return dict(manifest["tasks"])


def _task_files(folder: Path, source: str | None = None) -> tuple[Path, ...]:
    manifest = read_manifest(folder)
    assert manifest is not None
    names = manifest["tasks"].values()
    if source is None or manifest["format"] == TASK_FORMAT:
        return tuple(folder / name for name in names)
    return tuple(_hub_file(source, folder, name) for name in names)


# -------------------------------------------------------------------------- the hub


def _in_zoo(tag: str) -> bool:
    """Whether the model zoo's table has this tag, and not as one of the hub."""
    from espnet_model_zoo.downloader import ModelDownloader

    return "huggingface.co" not in ModelDownloader().get_url(tag)


def _snapshot(source: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        # All task packs together are small; the tasks of a base may be thousands.
        folder = Path(
            snapshot_download(
                name,
                revision=revision or None,
                library_name="espnet",
                ignore_patterns=[f"{FOLDER}/*"],
            )
        )
        manifest = read_manifest(folder)
        if manifest is not None and manifest["format"] == TASK_FORMAT:
            for file in manifest["tasks"].values():
                _hub_file(source, folder, file)
        return folder
    except BaseModelError:
        raise
    except Exception as e:
        raise BaseModelError(
            f"{source}: neither a file or folder here nor a repository that could be "
            f"fetched from the hub ({type(e).__name__}: {e})"
        ) from e


def _hub_file(source: str, folder: Path, file: str) -> Path:
    """Fetch one file of the revision that a snapshot has."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(source.partition("@")[0], file, revision=folder.name)
        )
    except Exception as e:
        raise TaskError(
            f"{source}: {file} could not be fetched ({type(e).__name__}: {e})"
        ) from e


# -------------------------------------------------------------------------- reading


def checkpoint_tasks(found: Found) -> tuple[str, ...]:
    """Tasks in a model's checkpoint that were not removed since, without loading it.

    Raises:
        BaseModelError: The configuration is not readable, or of another model.
    """
    config = found.written
    conf = config.get("encoder_conf")
    if not str(config.get("encoder")).startswith(PREFIX) or not isinstance(conf, dict):
        raise BaseModelError(
            f"{found.source}: this model has no adapter (encoder: "
            f"{encoder_of(config)}) and no tasks; give an adaptation of it"
        )
    removed = found.store.removed
    return tuple(n for n in read_tasks(conf.get("tasks")) if n not in removed)


def known_tasks(found: Found) -> tuple[str, ...]:
    """All tasks of a model, in alphabetical order. Errors as of the above."""
    return tuple(sorted({*checkpoint_tasks(found), *found.store.names}))


def unknown_task(found: Found, name: str) -> TaskError:
    """The error that a model has no task of a name."""
    known = listing(known_tasks(found))
    return TaskError(f"unknown task {name!r}; known tasks: {known}")
