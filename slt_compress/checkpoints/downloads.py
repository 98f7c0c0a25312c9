"""Download a hub repository to a local folder: its list of files first, then only safe files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from slt_compress.checkpoints.guidance import no_checkpoint
from slt_compress.checkpoints.quiet import quiet
from slt_compress.checkpoints.sentence_files import MODULES, wanted_of
from slt_compress.checkpoints.weight_files import INDEX, pick_weights, read_json_object, shard_names
from slt_compress.errors import SourceError

_SUFFIXES = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".spm",
    ".tokenizer",
    ".tiktoken",
    ".codes",
    ".bpe",
)  # configs, vocabularies, tokenizers, templates
_PATTERN_CHARACTERS = set("*?[]")
_TEXTS = ("README", "LICENSE", "LICENCE", "HOW_TO_LOAD")  # how files for people begin


def fetch(repo: str, revision: str | None, *, with_weights: bool) -> tuple[Path, str]:
    """Download what a checkpoint needs; returns the local folder and its commit hash.

    HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as in huggingface_hub. If the hub cannot
    be reached, its cache is used.

    Raises:
        SourceError: an unknown id or revision, no access, no network and no cache, or no safe
            weights.
    """
    with quiet(), _explained(repo, revision):
        try:
            info = HfApi().model_info(repo, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
            raise
        except Exception as error:  # each version of the client has its own network errors
            return _from_cache(repo, revision, error, with_weights=with_weights)
        if not info.sha:
            raise SourceError(
                f"the hub gives no commit for {repo}, so its revision cannot be pinned"
            )
        names = frozenset(s.rfilename for s in info.siblings or ())
        if "config.json" not in names:
            raise SourceError(no_checkpoint(names, repo))
        wanted = [name for name in names if _is_plain(name)]
        if with_weights:
            wanted += _weights(repo, info.sha, names) + wanted_of(names)
        # By the user's name and not by the commit, so that the cache knows the name offline.
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=sorted(wanted)))
        return folder, folder.name


def fetch_all(repo: str, revision: str | None) -> Path:
    """Download every plain file at the root of a repository that holds a ticket or an artifact.

    Raises:
        SourceError: as in `fetch`.
    """
    with quiet(), _explained(repo, revision):
        suffixes = (*_SUFFIXES, ".jsonl", ".safetensors")
        patterns = [*(f"{text}*" for text in _TEXTS), *(f"*{suffix}" for suffix in suffixes)]
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
        if (Path(folder) / MODULES).is_file():
            modules = ["[0-9]*_*/*.json", "[0-9]*_*/*.txt", "[0-9]*_*/*.safetensors"]
            snapshot_download(
                repo, revision=revision, allow_patterns=modules, ignore_patterns=["*/*/*"]
            )
        return Path(folder)


def cached(repo: str, commit: str) -> Path | None:
    """The folder of an earlier download of exactly this commit, without using the network."""
    try:
        with quiet():
            folder = Path(snapshot_download(repo, revision=commit, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return None
    return folder if (folder / "config.json").is_file() else None


def _is_plain(name: str) -> bool:
    """Whether a file at the root of a repository is small, useful and not a program."""
    if "/" in name or set(name) & _PATTERN_CHARACTERS:
        return False
    return name.endswith(_SUFFIXES) or name.upper().startswith(_TEXTS)


def _weights(repo: str, commit: str, names: frozenset[str]) -> list[str]:
    picked = pick_weights(names, repo)
    if picked != INDEX:
        return [picked]
    index = read_json_object(Path(hf_hub_download(repo, INDEX, revision=commit)))
    shards = shard_names(index, f"{INDEX} of {repo}")
    missing = [name for name in shards if name not in names]
    if missing:
        raise SourceError(f"{repo} lacks the shard {missing[0]}, which its index names")
    return list(shards)


def _from_cache(
    repo: str, revision: str | None, error: Exception, *, with_weights: bool
) -> tuple[Path, str]:
    """The snapshot of an earlier download.

    Raises:
        SourceError: there is none; the message says whether offline mode or the network is why.
    """
    patterns = ["config.json"] + (["*.safetensors"] if with_weights else [])
    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, local_files_only=True, allow_patterns=patterns
            )
        )
        if with_weights and not any(folder.glob("*.safetensors")):
            raise ValueError("only the config was downloaded")
    # each version of the client has its own error for an incomplete cache
    except (LocalEntryNotFoundError, OSError, ValueError) as absent:
        if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set"
        elif isinstance(error, HfHubHTTPError) and error.response is not None:
            why = f"{constants.ENDPOINT} answered {error.response.status_code}"
        else:
            why = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
        raise SourceError(
            f"{repo} is not in the local cache and {why}; connect, or give a local folder"
        ) from absent
    return folder, folder.name


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except GatedRepoError as error:
        raise SourceError(
            f"{repo} is gated: ask for access at {constants.ENDPOINT}/{repo}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{repo} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{repo} is neither a local path nor on the hub; check the spelling, or log in with "
            "`hf auth login` if it is private"
        ) from error
    except HFValidationError as error:
        raise SourceError(f"{repo!r} is neither a local path nor a valid hub id") from error
    except Exception as error:  # the HTTP errors differ by version
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{repo} could not be downloaded: {text}") from error
