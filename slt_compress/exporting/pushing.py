"""Push: a ticket or an exported folder goes up to the hub, with the card that it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants

from slt_compress.checkpoints.companions import is_own_file
from slt_compress.checkpoints.quiet import quiet
from slt_compress.checkpoints.sentence_files import module_files
from slt_compress.errors import SltError

_PRIVATE = ("run.json",)  # paths and machine
_EMPTY = {".gitattributes"}  # what the hub itself puts into a new repository


def upload_list(folder: Path) -> list[Path]:
    """The files that `push` uploads: all at the root of a folder but `run.json` and hidden ones.

    Those of the modules of sentence-transformers lie in folders, and go up too.

    Raises:
        SltError: one of them is a link that leaves the folder.
    """
    files = []
    for file in sorted(folder.iterdir()):
        if file.name in _PRIVATE or file.name.startswith(".") or file.is_dir():
            continue
        if not is_own_file(file, folder):
            raise SltError(f"{file} is not a file of {folder}: nothing was pushed; remove it")
        files.append(file)
    return files + [folder / path for path in module_files(folder)]


def push(folder: Path, repo: str) -> str:
    """Upload a folder as a model repository, made if need be; gives its address.

    What `upload_list` gives goes up in one commit. Where that fails or is interrupted, a repository
    that was made for it is removed again. HF_ENDPOINT and HF_TOKEN are respected.

    Raises:
        SltError: the hub cannot be reached or does not let this user write there; `folder` is as
            it was.
    """
    files = upload_list(folder)
    try:
        with quiet(), _repository(repo) as api:
            api.create_commit(
                repo_id=repo, commit_message=f"Upload {folder.name} with slt-compress",
                operations=[
                    CommitOperationAdd(
                        path_in_repo=file.relative_to(folder).as_posix(), path_or_fileobj=file
                    )
                    for file in files
                ],
            )  # fmt: skip
    except Exception as cause:  # each version of the client has its own errors
        text = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise SltError(
            f"{folder} was written, but could not be pushed to {repo}: {text}; log in with "
            "`hf auth login` or set HF_TOKEN, and repeat the command or upload it with `hf upload`"
        ) from cause
    return f"{constants.ENDPOINT}/{repo}"


@contextmanager
def _repository(repo: str) -> Iterator[HfApi]:
    """A model repository for the block; one that was made for it goes where the block fails."""
    api = HfApi()
    existed = api.repo_exists(repo)
    try:
        api.create_repo(repo, repo_type="model", exist_ok=True)
        yield api
    except BaseException:  # an interrupt, too
        if not existed:
            with suppress(Exception):  # the first error is the one to tell
                if set(api.list_repo_files(repo)) <= _EMPTY:
                    api.delete_repo(repo, missing_ok=True)
        raise
