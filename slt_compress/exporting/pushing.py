"""Push: upload a ticket or an exported folder to the hub, with its card."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants

from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import SltError

_PRIVATE = ["run.json"]  # paths and machine


def push(folder: Path, repo: str) -> str:
    """Upload a folder as a model repository, created if necessary; returns its address.

    Everything but `run.json` is uploaded. HF_ENDPOINT and HF_TOKEN are respected.

    Raises:
        SltError: the hub cannot be reached or does not let this user write there; `folder` is
            unchanged.
    """
    try:
        with quiet():
            api = HfApi()
            api.create_repo(repo, repo_type="model", exist_ok=True)
            api.upload_folder(
                repo_id=repo, folder_path=folder, ignore_patterns=_PRIVATE,
                commit_message=f"Upload {folder.name} with slt-compress",
            )  # fmt: skip
    except Exception as cause:  # each version of the client has its own errors
        text = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise SltError(
            f"{folder} was written, but could not be pushed to {repo}: {text}; log in with "
            "`hf auth login` or set HF_TOKEN, and upload it with `hf upload`"
        ) from cause
    return f"{constants.ENDPOINT}/{repo}"
