"""The shape of the package: rooms, sizes, public names, flags, and what an import costs."""

from __future__ import annotations

import ast
import gc
import json
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import typer
from house import FILES, MODULES, PACKAGE, ROW_OF, imports, room_of

import slt_compress
from slt_compress import cli
from slt_compress.cli import app

PUBLIC = [
    "search", "plan", "export", "load", "report", "verify", "evaluate", "compare",
    "open_checkpoint", "hold_zeros", "Budget", "Targets", "Training", "Recipe", "Ticket", "Masks",
    "Base", "SltError",
]  # fmt: skip

# Each flag is a promise: a new one is a decision, and a lost one breaks somebody's script.
FLAGS = {
    "": "--version --install-completion --show-completion",
    "search": "SOURCE --target-sparsity --method --pattern --permute --scope --inside --gains "
    "--tune --objective --dataset --init --weights --revision --steps --epochs --batch-size --lr "
    "--seed --device --precision --accumulate --recompute --state --max-time --controls --recipe "
    "--set -o --out --save-every --resume --fresh --tracker --push-to-hub --quiet --json",
    "plan": "SOURCE --target-sparsity --method --pattern --permute --scope --inside --gains "
    "--tune --objective --dataset --init --weights --revision --steps --epochs --batch-size --lr "
    "--seed --device --precision --accumulate --recompute --state --max-time --controls --recipe "
    "--set --full --json",
    "report": "PATH --html --full --json",
    "export": "TICKET --format --shrink --fold -o --out --origin --values-dtype --max-shard-size "
    "--push-to-hub --json",
    "verify": "PATH --origin --json",
    "evaluate": "PATH --dataset --origin --batch-size --set --json",
    "compare": "SOURCE --methods --target-sparsity --seeds --gains --tune --seed --dataset --init "
    "--weights --revision --steps --epochs --batch-size --lr --device --controls --recipe --set "
    "-o --out --quiet --json",
    "import": "PATH -o --out",
    "bench": "PATH --batch --origin --threads --rounds --against --json",
    "audit": "MODEL --ticket --origin --strict --json",
    "apply": "TICKET MODEL -o --out",
    "doctor": "--json",
    "tickets": "",
    "tickets diff": "FIRST SECOND --full --json",
    "tickets list": "FOLDER --json",
    "tickets merge": "FIRST SECOND --op -o --out",
    "recipes": "",
    "recipes show": "NAME",
}


def test_every_file_is_in_a_room() -> None:
    assert {room_of(path) for path in FILES} == set(ROW_OF)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target}"
        for path in FILES
        for line, target in imports(ast.parse(path.read_text(encoding="utf-8")))
        if room_of(MODULES[target]) != room_of(path)
        and ROW_OF[room_of(MODULES[target])] >= ROW_OF[room_of(path)]
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    """No circle among the imports of a start, inside the rooms either; lazy ones aside."""
    needs = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kept = [node for node in tree.body if "TYPE_CHECKING" not in ast.unparse(node)[:40]]
        start = ast.Module([n for n in kept if not isinstance(n, ast.FunctionDef)], [])
        needs[name] = {target for _, target in imports(start)}
    order = list(TopologicalSorter(needs).static_order())  # raises CycleError
    assert set(order) == set(MODULES)


def test_no_room_is_larger_than_a_fifth_of_the_house() -> None:
    lines = Counter[str]()
    for path in FILES:
        lines[room_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
    assert max(lines.values()) <= 0.2 * lines.total()


def test_functions_are_short_in_the_middle_too() -> None:
    lengths = [
        (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert median(lengths) <= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_small_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(tree)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        documented = ast.get_docstring(node) is not None
        docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
        # the signature of a command is the list of its flags, as long as there are flags
        is_command = any("command" in ast.unparse(decorator) for decorator in node.decorator_list)
        start = first.lineno if is_command else node.lineno
        length = (node.end_lineno or 0) - start + 1 - docstring
        assert length <= 50, f"{node.name} has {length} lines"


def test_there_are_no_asserts_and_no_pickles_in_the_package() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = f"{node.value.id}.{node.attr}"
                assert called not in ("torch.load", "pickle.load", "pickle.loads", "np.load"), path
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


def test_the_public_names_are_frozen_and_resolve() -> None:
    assert slt_compress.__all__ == PUBLIC
    assert dir(slt_compress) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(slt_compress, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        slt_compress.nothing  # noqa: B018


def test_the_public_names_are_those_a_type_checker_sees() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        (node.module, alias.asname)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    homes = {(f"slt_compress.{home}", name) for name, home in slt_compress._HOMES.items()}
    assert seen == homes
    assert {name for _, name in homes} == set(PUBLIC) - {"SltError"}


def test_no_public_name_is_that_of_a_module() -> None:
    assert not set(PUBLIC) & set(ROW_OF)


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after running `code`."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stderr)}


RUN = "from slt_compress.cli.app import main\ntry: main({})\nexcept SystemExit: pass"
HEAVY = {"torch", "transformers", "timm", "datasets", "accelerate", "numpy", "pyarrow"}


@pytest.mark.parametrize(
    "code",
    [
        "import slt_compress",
        "import slt_compress.cli.app",
        RUN.format(["--help"]),
        RUN.format(["search", "--help"]),
        RUN.format(["compare", "--help"]),
        RUN.format(["plan", "--help"]),
        RUN.format(["--version"]),
        RUN.format(["recipes"]),
        RUN.format(["recipes", "show", "smoke"]),
    ],
    ids=[
        "package",
        "cli",
        "help",
        "search-help",
        "compare-help",
        "plan-help",
        "version",
        "recipes",
        "recipes-show",
    ],
)
def test_nothing_heavy_is_loaded_before_there_is_work(code: str) -> None:
    # typer itself looks for pydantic types when it builds a command with arguments
    heavy = HEAVY if re.search("search|compare|plan|recipes", code) else HEAVY | {"pydantic"}
    assert not modules_after(code) & heavy


def test_a_plan_loads_nothing_that_only_a_search_needs(checkpoints: dict[str, Path]) -> None:
    loaded = modules_after(RUN.format(["plan", str(checkpoints["vit"]), "--json"]))
    assert "transformers" in loaded
    assert not loaded & {
        "pyarrow",
        "datasets",
        "timm",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "numba",
    }


def test_a_plan_leaves_the_garbage_collector_as_it_was(
    checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = gc.get_freeze_count()
    with pytest.raises(SystemExit):
        cli.main(["plan", str(checkpoints["vit"])])
    assert capsys.readouterr().out
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_the_flags_are_frozen() -> None:
    found: dict[str, str] = {}

    def walk(command: Any, path: str) -> None:
        found[path] = " ".join(
            name
            for parameter in command.params
            for name in (
                parameter.opts
                if parameter.param_type_name == "option"
                else [parameter.name.upper()]
            )
            if name != "--help"
        )
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}".strip())

    walk(typer.main.get_command(app.app), "")
    assert found == FLAGS
