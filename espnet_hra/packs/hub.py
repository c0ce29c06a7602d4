"""Packs on the hub, or on what ``HF_ENDPOINT`` says is the hub."""

import tempfile
from pathlib import Path

from espnet_hra.errors import BaseModelError
from espnet_hra.espnet.models import MANIFEST, read_manifest
from espnet_hra.files import archive
from espnet_hra.version import __version__


def upload(pack: str, repo: str, private: bool = False) -> str:
    """Put a pack on the hub, or what ``HF_ENDPOINT`` says is the hub.

    Args:
        pack: Folder or zip.
        repo: Repository, ``owner/name``; it is made if it does not exist.
        private: Whether a new one is private.

    Returns:
        The address of the commit.

    Raises:
        BaseModelError: This is no pack, or the hub refuses it.
    """
    path = Path(pack).expanduser()
    with tempfile.TemporaryDirectory() as temporary:
        folder = path
        if path.is_file():
            folder = Path(temporary) / "pack"
            archive.extract(path, folder)
        if not folder.is_dir() or read_manifest(folder) is None:
            raise BaseModelError(
                f"{pack}: no pack of espnet-hra ({MANIFEST} is missing)"
            )
        return _upload(folder, repo, private)


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="espnet-hra", library_version=__version__)
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload by espnet-hra pack"
        )
    except Exception as e:
        raise BaseModelError(
            f"{repo}: the hub did not take the pack ({type(e).__name__}: {e}); log in "
            "with `hf auth login` or HF_TOKEN, and see that the name is owner/name"
        ) from e
    return str(commit.commit_url)
