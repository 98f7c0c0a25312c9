"""One function for each campaign; each yields a record for every run: `bad` says what was wrong."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.commands import Command, commands, exists, is_whole, litter
from campaign.forking import COMMON, LENET, Child, Ended, run

Record = dict[str, Any]


def _timed(made: dict[str, Command], root: Path) -> dict[str, float]:
    """How long each command takes here, undisturbed; the median of three."""
    times = {}
    for name, command in made.items():
        runs = []
        for _ in range(3):
            folder = root / "timed"
            runs.append(run(folder, list(command.arguments)))
            shutil.rmtree(folder)
        if any(done.code for done in runs):
            raise SystemExit(f"{name} does not run: {runs[0].err}")
        times[name] = sorted(done.seconds for done in runs)[1]
    return times


def kills(root: Path, chance: random.Random) -> Iterator[Record]:
    """SIGKILL at a random moment; the final name, a second run, and what that leaves."""
    made = commands(root / "tools")
    times = _timed(made, root)
    while True:
        for command in made.values():
            folder = root / "killed"
            child = Child(folder, list(command.arguments))
            moment = chance.uniform(0, times[command.name] * 1.05)
            time.sleep(moment)
            child.send(signal.SIGKILL)
            child.wait()
            bad = []
            finished = exists(command, folder)
            if finished and not is_whole(command, folder):
                bad.append("half-written under its final name")
            again = run(folder, list(command.arguments))
            taken = finished and "not empty" in again.err and command.name != "compare"
            if (again.code and not taken) or not is_whole(command, folder):
                bad.append(f"the second run failed: {again.err[-200:]}")
            if not taken:
                bad += [f"litter: {name}" for name in litter(folder)]
            shutil.rmtree(folder)
            yield {"command": command.name, "at": round(moment, 3), "finished": finished,
                   "bad": bad}  # fmt: skip


def resumes(root: Path, chance: random.Random) -> Iterator[Record]:
    """SIGKILL at a random moment of a search, again and again until it ends: the same bytes.

    One search trains all gates, the other goes block by block.
    """
    searches = {
        "search": ["search", *LENET, *COMMON, "--steps", "12", "--save-every", "0", "-o", "new"],
        "blocks": ["search", *LENET, *COMMON, "--objective", "reconstruct", "--save-every", "0",
                   "-o", "new"],
    }  # fmt: skip
    whole, times = {}, {}
    for name, arguments in searches.items():
        done = run(root / name, arguments)
        if done.code:
            raise SystemExit(f"{name} does not run: {done.err}")
        whole[name], times[name] = _digests(root / name / "new"), done.seconds
    while True:
        for name, arguments in searches.items():
            folder, moments, bad = root / "killed", [], []
            for _ in range(20):  # a search that is killed late enough every time goes on
                child = Child(folder, arguments)
                moments.append(chance.uniform(0, times[name]))
                time.sleep(moments[-1])
                child.send(signal.SIGKILL)
                if child.wait().code == 0 or chance.random() < 0.5:
                    break
            ended = run(folder, arguments)
            taken = "not empty" in ended.err  # it was killed after the ticket was there
            if ended.code and not taken:
                bad.append(f"the last run failed: {ended.err[-200:]}")
            elif _digests(folder / "new") != whole[name]:
                bad.append("another ticket")
            if not taken:
                bad += [f"litter: {left}" for left in litter(folder)]
            shutil.rmtree(folder)
            yield {"command": name, "at": [round(at, 3) for at in moments], "bad": bad}


def _digests(ticket: Path) -> dict[str, str]:
    """Hash of every file of a ticket but the one that holds the clock."""
    files = sorted(path for path in ticket.iterdir() if path.name != "run.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def signals(root: Path, chance: random.Random) -> Iterator[Record]:
    """SIGINT or SIGTERM at a random moment, once or twice."""
    made = commands(root / "tools")
    times = _timed(made, root)
    while True:
        for command in made.values():
            folder = root / "signalled"
            child = Child(folder, list(command.arguments))
            signum = chance.choice((signal.SIGINT, signal.SIGTERM))
            double = chance.random() < 0.5
            moment = chance.uniform(0, times[command.name])
            time.sleep(moment)
            child.send(signum)
            if double:
                time.sleep(chance.choice((0.0, 0.001, 0.01, 0.05)))
                child.send(signum)
            ended = child.wait()
            bad = _ended_badly(ended, 128 + signum)
            if exists(command, folder) and not is_whole(command, folder):
                bad.append("half-written under its final name")
            left = [name for name in litter(folder) if ".part-" in name]
            bad += [f"litter: {name}" for name in left]
            shutil.rmtree(folder)
            yield {"command": command.name, "at": round(moment, 3), "double": double,
                   "signal": int(signum), "code": ended.code, "bad": bad}  # fmt: skip


def _ended_badly(ended: Ended, code: int) -> list[str]:
    bad = []
    if ended.code == 0:
        return [] if ended.is_clean else [f"not clean: {ended.err[-300:]}"]
    if ended.code != code:
        bad.append(f"code {ended.code} instead of {code}")
    lines = [line for line in ended.err.splitlines() if "interrupted" in line]
    if len(lines) != 1 or not ended.is_clean:
        bad.append(f"not one line: {ended.err[-300:]}")
    return bad


def _told(ended: Ended) -> str:
    """What a child said, without its warnings."""
    lines = ended.err.splitlines()
    return "\n".join(line for line in lines if not line.startswith("warning: "))


def writers(root: Path, chance: random.Random) -> Iterator[Record]:
    """Two of a kind that write to one folder at once."""
    made = commands(root / "tools")
    while True:
        for name in ("search", "export", "compare"):
            command, folder = made[name], root / "shared"
            first = Child(folder, list(command.arguments))
            time.sleep(chance.choice((0.0, 0.0, 0.05, 0.3)))
            second = Child(folder, list(command.arguments))
            ends = [first.wait(), second.wait()]
            bad = [f"not clean: {end.err[-300:]}" for end in ends if not end.is_clean]
            if not any(end.code == 0 for end in ends):
                bad.append(f"neither finished: {ends[0].err[-150:]} / {ends[1].err[-150:]}")
            bad += [f"no sentence: {end.err[-300:]}" for end in ends if end.code and not
                    _told(end).startswith("error: ")]  # fmt: skip
            if not is_whole(command, folder):
                bad.append("what is left is not whole")
            if name == "compare":
                rows = json.loads((folder / "new" / "compare.json").read_text())["rows"]
                bad += ["a row is lost"] * (len(rows) != 2 or any(r.get("error") for r in rows))
            bad += [f"litter: {left}" for left in litter(folder)]
            shutil.rmtree(folder)
            yield {"command": name, "codes": [end.code for end in ends], "bad": bad}


MIB = 2**20


def limits(root: Path, chance: random.Random) -> Iterator[Record]:
    """Limits on memory, on the size of files and on descriptors, and places that are not there."""
    made = commands(root / "tools")
    while True:
        for name, command in made.items():
            for kind, prepare in _LIMITS.items():
                folder = root / "limited"
                folder.mkdir()
                options = prepare(folder, chance)
                ended = run(folder, list(command.arguments), **options)
                (folder / "file").unlink(missing_ok=True)
                bad = [] if ended.is_clean else [f"not clean: {ended.err[-400:]}"]
                if ended.code < 0:
                    bad.append(f"killed by {-ended.code}")
                told = len(_told(ended).splitlines()) == 1 or (
                    name == "compare" and "failed: " in ended.out
                )
                if ended.code > 0 and not told:
                    bad.append(f"not one line: {ended.err[-300:]}")
                final = folder / command.final
                if final.is_dir() and any(final.iterdir()) and not is_whole(command, folder):
                    bad.append("what is left is not whole")
                shutil.rmtree(folder)
                yield {"command": name, "limit": kind, "code": ended.code, "bad": bad}


def _file_size(folder: Path, chance: random.Random) -> Record:
    size = chance.choice((2000, 20_000, 60_000))
    return {"limits": {resource.RLIMIT_FSIZE: size},
            "before": lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN)}  # fmt: skip


def _descriptors(folder: Path, chance: random.Random) -> Record:
    return {"limits": {resource.RLIMIT_NOFILE: chance.choice((7, 9, 12))}}


def _memory(folder: Path, chance: random.Random) -> Record:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return {"limits": {resource.RLIMIT_AS: used + chance.choice((1, 4, 16, 48)) * MIB}}


def _not_a_folder(folder: Path, chance: random.Random) -> Record:
    (folder / "new").write_text("mine")
    return {}


_LIMITS: dict[str, Callable[[Path, random.Random], Record]] = {
    "file size": _file_size, "descriptors": _descriptors, "memory": _memory,
    "a file in the way": _not_a_folder,
}  # fmt: skip


def tampering(root: Path, chance: random.Random) -> Iterator[Record]:
    """A changed, removed or added config, companion, probe or argument: `verify` must fail."""
    from slt_compress import SltError, verify

    tools = root / "tools"
    made = commands(tools)
    folders = {"ticket": tools / "one"}
    for format in ("dense", "auto", "mask"):
        folders[format] = tools / format
        run(tools, ["export", str(tools / "one"), "--format", format, "-o", str(tools / format)])
    del made
    while True:
        for format, whole in folders.items():
            folder = root / "tampered"
            shutil.copytree(whole, folder)
            spared = ("README.md", "run.json")
            files = [f for f in sorted(folder.iterdir())
                     if f.name not in spared and f.stat().st_size]  # fmt: skip
            file = chance.choice(files)
            what = _tampered(file, chance)
            try:
                passed = verify(folder, in_process=True).ok
            except SltError:
                passed = False
            shutil.rmtree(folder)
            yield {"format": format, "file": file.name, "what": what,
                   "bad": ["verify passed"] * passed}  # fmt: skip


ROOTS = ("ticket.json", "slt.json")


def _tampered(file: Path, chance: random.Random) -> str:
    """Change a file; the manifest itself, which no hash covers, in what changes outputs."""
    data = file.read_bytes()
    if file.name in ROOTS:
        content = json.loads(data)
        origin = content["origin"] if "origin" in content else content["provenance"]["origin"]
        what = chance.choice(("config", "classes", "seed", "probe"))
        if what == "config":
            origin["config"]["num_classes"] = 11
        elif what == "classes":
            origin["config"]["architecture"] = "conv-2"
        elif what == "seed":
            origin["init"]["seed"] += 1
        else:
            (file.parent / "probe.safetensors").unlink()
            content["probe"] = None
            content["files"].pop("probe.safetensors", None)
        file.write_text(json.dumps(content))
        return f"another {what}"
    match chance.randrange(4):
        case 0:
            file.unlink()
            return "removed"
        case 1 if file.suffix == ".json":
            content = json.loads(data)
            content[chance.choice(sorted(content))] = "changed"
            file.write_text(json.dumps(content))
            return "another value"
        case 2 if file.name != "report.json":
            (file.parent / "preprocessor_config.json").write_text("{}")
            file.write_bytes(data[: len(data) // 2])
            return "cut, and a file added"
        case _:
            # the manifest in a header is a root as well: what it says is not covered by a hash
            start = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else 0
            at = chance.randrange(start, len(data))
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            return f"bit 0 of byte {at}"


KINDS: dict[str, Callable[[Path, random.Random], Iterator[Record]]] = {
    "kills": kills,
    "resumes": resumes, "signals": signals, "writers": writers, "limits": limits,
    "tampering": tampering,
}  # fmt: skip
