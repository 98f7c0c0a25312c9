"""The shape of the package: layers, sizes, public names, flags, and what an import costs."""

from __future__ import annotations

import ast
import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import slt_compress
from slt_compress import cli

PACKAGE = Path(slt_compress.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports from lower layers only; a subpackage also from itself. CONTRIBUTING prints this.
LAYERS = (
    "attentions bits convolutions counting errors expectations hidden kernels layouts making "
    "masks outputs parameters plots printing reaching reference registering schedules",
    "files formats initial layers names patterns roles shrinking",
    "budget choosing filling lazy_files manifests sites",
    "checkpoints fitting methods silencing ticket",
    "artifact calibration data gating objectives provenance pushing settings",
    "controls evaluation onnx_models origins pattern_checks probes recipes reporting selecting "
    "starting streaming training",
    "cards comparing cookbook options planning runtime searching",
    "adapters compacting confining converting deriving exporting importing outlines quantizer "
    "recording runtimes verifying workloads",
    "benching console forecasting interchange onnx_checks shelf",
    "api timing",
    "preview",
    "cli",
    "__init__ __main__",
)
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names.split()}

PUBLIC = [
    "search", "plan", "export", "load", "report", "verify", "evaluate", "compare",
    "open_checkpoint", "Budget", "Targets", "Training", "Recipe", "Ticket", "Masks", "Base",
    "SltError",
]  # fmt: skip

# Each flag is a promise: a new one is a decision, and a lost one breaks somebody's script.
FLAGS = {
    "": "--version",
    "search": "SOURCE --target-sparsity --method --pattern --scope --inside --objective --dataset "
    "--init --weights --revision --steps --epochs --batch-size --lr --seed --device --precision "
    "--max-time --recipe --set -o --out --push-to-hub --quiet --json",
    "plan": "SOURCE --target-sparsity --method --pattern --dataset --init --weights --revision "
    "--steps --epochs --batch-size --recipe --set --json",
    "report": "PATH --json",
    "export": "TICKET --format --shrink -o --out --origin --values-dtype --max-shard-size "
    "--push-to-hub --json",
    "verify": "PATH --origin --json",
    "evaluate": "PATH --dataset --origin --batch-size --set --json",
    "compare": "SOURCE --methods --target-sparsity --seeds --seed --dataset --init --weights "
    "--revision --steps --epochs --batch-size --lr --device --recipe --set -o --out --quiet --json",
    "import": "PATH -o --out",
    "bench": "PATH --batch --origin --threads --rounds --json",
    "tickets": "",
    "tickets diff": "FIRST SECOND --json",
    "tickets merge": "FIRST SECOND --op -o --out",
    "recipes": "",
    "recipes show": "NAME",
}


def name_of(path: Path) -> str:
    """The module or subpackage of the top level that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and target of everything of this package that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "slt_compress":
                    yield node.lineno, [*alias.name.split("."), "__init__"][1]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            first, *rest = (node.module or "").split(".")
            if first == "slt_compress":
                for alias in node.names:
                    yield node.lineno, rest[0] if rest else alias.name


def test_every_module_has_one_layer() -> None:
    assert {name_of(path) for path in FILES} == set(LAYER_OF)
    assert sum(len(names.split()) for names in LAYERS) == len(LAYER_OF)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target}"
        for path in FILES
        for line, target in imports(path)
        if target not in ("__version__", name_of(path))
        and LAYER_OF[target] >= LAYER_OF[name_of(path)]
    ]
    assert not wrong


def test_no_layer_is_higher_than_it_must_be() -> None:
    below = {name: {-1} for name in LAYER_OF}
    for path in FILES:
        for _, target in imports(path):
            if target not in ("__version__", name_of(path)):
                below[name_of(path)].add(LAYER_OF[target])
    tops = ("__init__", "__main__")
    assert {n: max(b) + 1 for n, b in below.items() if n not in tops} == {
        n: level for n, level in LAYER_OF.items() if n not in tops
    }


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
    assert not set(PUBLIC) & set(LAYER_OF)


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after running `code`."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stderr)}


RUN = "from slt_compress.cli import main\ntry: main({})\nexcept SystemExit: pass"
HEAVY = {"torch", "transformers", "timm", "datasets", "accelerate", "numpy", "pyarrow"}


@pytest.mark.parametrize(
    "code",
    [
        "import slt_compress",
        "import slt_compress.cli",
        RUN.format(["--help"]),
        RUN.format(["search", "--help"]),
        RUN.format(["compare", "--help"]),
        RUN.format(["plan", "--help"]),
        RUN.format(["--version"]),
    ],
    ids=["package", "cli", "help", "search-help", "compare-help", "plan-help", "version"],
)
def test_nothing_heavy_is_loaded_before_there_is_work(code: str) -> None:
    # typer itself looks for pydantic types when it builds a command with arguments
    heavy = HEAVY if re.search("search|compare|plan", code) else HEAVY | {"pydantic"}
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

    walk(typer.main.get_command(cli.app), "")
    assert found == FLAGS
