"""Whether a folder has all that it was written with, and nothing that would change its use."""

from __future__ import annotations

from slt_compress.artifacts import CONFIG
from slt_compress.artifacts.beside import BESIDE, UNPROBED, added_files
from slt_compress.evidence.checks import Check, failed
from slt_compress.runtime.opening import Opened
from slt_compress.storage.files import read_json


def files_check(opened: Opened, detail: str) -> Check:
    """The check `files` of an opened folder, whose hashes agree; `detail` is what it says then.

    Fails where a tokenizer or processor file was added that the manifest does not list, or where
    an artifact from before its manifest listed them has another `config.json` than the manifest.
    """
    artifact = opened.artifact
    if artifact is None:
        return Check(name="files", ok=True, detail=detail)
    added, manifest, config = added_files(artifact), artifact.manifest, artifact.path / CONFIG
    if added:
        return failed("files", f"{added[0]} was added: the manifest does not list it")
    if BESIDE not in manifest.values and config.is_file() and artifact.format != "dense":
        stored = {**read_json(config, manifest.error), "quantization_config": None}
        if stored != {**manifest.object("config"), "quantization_config": None}:
            return failed("files", f"{CONFIG} is not the config in the manifest")
    return Check(name="files", ok=True, detail=detail)


def without_probe(opened: Opened) -> Check:
    """The check `logits` of a folder without a probe: passed only where its ticket had none.

    A ticket without one that its manifest lists is refused as it is read.
    """
    if opened.artifact is not None:
        values = opened.artifact.manifest.values
        if BESIDE in values and values.get(UNPROBED) is not True:
            return failed("logits", "there is no probe: it was removed")
    return Check(name="logits", ok=True, detail="not tested: no probe was stored")
