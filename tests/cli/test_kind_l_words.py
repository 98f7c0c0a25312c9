"""Words from outside are shown as they are, in the terminal and in Markdown."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import markdown_it
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.progress import Progress
from rich.table import Table
from rich.tree import Tree

import slt_compress
from slt_compress.cli import console
from slt_compress.cli.app import main
from slt_compress.cli.plan_outline import outline
from slt_compress.cli.plots import plot
from slt_compress.cli.screen import Screen, Text, stacked
from slt_compress.errors import SltError
from slt_compress.evidence.cards import artifact_card, onnx_inputs
from slt_compress.masks import Masks
from slt_compress.searching.recipes import parse_recipe
from slt_compress.storage.outside import code_span, markdown, visible
from slt_compress.tickets.card import derived_card, ticket_card

HOSTILE = (
    "m [bold]v1[/bold]", "m[/x]", "[link=file:///x]m[/link]", ":smile:", "a\x1b[31mred", "a\x07b",
    "a\x1b]8;;http://x\x07y", "first\nok    weights: fine", "a\rb", "back\x08\x08", "a\x9bb",
    "\u202eexe.txt", "a\u2028b", "a\u2066b", "a\udc80b", "tab\tbed", "\u200f", "\x00",
)  # fmt: skip
MARKDOWN = (
    "a|b", "a_b_", "_a_", "**b**", "`x`", "``", "<script>x</script>", "[a](http://x)", "![a](x)",
    "# a", "a\n# b", "&lt;", "~~a~~", "$x$", "\\", "<!-- a -->", "a*b", "__init__", "<a@b.cd>",
)  # fmt: skip
PLAIN = (
    "bert-base-uncased", "google/vit-base-patch16-224", "resnet50.a1_in1k", "Modell für Blüten",
    "模型\u3000一", "model (2)", "a+b, c", "q_proj.0.weight", "100 %", "नमस्ते \u200d", "l'été",
)  # fmt: skip


def takes_room(word: str) -> bool:
    """Joiners, accents and fillers alone take none: a table has nothing to show in their column."""
    return cell_len(visible(word).strip()) > 0


words = st.one_of(
    st.sampled_from((*HOSTILE, *MARKDOWN, *PLAIN)),
    st.text(min_size=1, max_size=12).filter(takes_room),
    st.text("[]/\\`*_|<>&#~$a1 \x1b\n", min_size=1, max_size=10).filter(takes_room),
)
# What moves the cursor, styles, rings or breaks a line.
ACTING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printed(*parts: object, terminal: bool = False) -> str:
    out = io.StringIO()
    screen = Screen(file=out, width=400, force_terminal=terminal, color_system=None)
    for part in parts:
        screen.print(part, soft_wrap=True)
    return out.getvalue()


@pytest.mark.parametrize("word", PLAIN)
def test_ordinary_names_stay_as_they_are(word: str) -> None:
    assert visible(word) == markdown(word) == word
    assert code_span(word) == f"`{word}`"


@pytest.mark.parametrize(("word", "shown"), [
    ("a\x1b[31mred", r"a\x1b[31mred"), ("a\nb", r"a\nb"), ("\u202ea", r"\u202ea"),
    ("a\udc80", r"a\udc80"), ("a\x9b", r"a\x9b"), ("[bold]a[/bold]", "[bold]a[/bold]"),
])  # fmt: skip
def test_characters_that_act_are_shown_as_escapes(word: str, shown: str) -> None:
    assert visible(word) == shown


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(word=words)
def test_any_words_are_shown_as_they_are_in_any_place(word: str) -> None:
    table = Table(word, title=word, caption=word)
    table.add_row(word)
    tree = Tree(word)
    tree.add(Text(word).append(word, "cyan"))
    for part, times in (
        (table, 4),
        (tree, 3),
        (word, 1),
        (Text(word), 1),
        (stacked(word, word), 2),
    ):
        text = printed(part)
        assert text.replace("\n", " ").count(visible(word)) >= times, part
        assert not ACTING.search(text)
    assert printed(Text(word)) == f"{visible(word)}\n"
    assert printed(stacked(word, word)).count("\n") == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(word=words)
def test_any_words_in_a_terminal_that_styles(word: str) -> None:
    out = io.StringIO()
    screen = Screen(file=out, width=400, force_terminal=True, color_system="truecolor")
    screen.print(Text(word, "bold red"))
    screen.print(word)
    with Progress(console=screen, transient=True) as bars:
        bars.console.print(Text(word))
    ours = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert not ACTING.search(ours.replace("\r", ""))


def rendered(text: str) -> str:
    """What a reader of Markdown sees, as plain text; fails where anything but text came of it."""
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown: list[str] = []
    for token in parser.parse(text):
        assert token.type in ("heading_open", "heading_close", "inline"), token.type
        for child in token.children or ():
            assert child.type == "text", child.type
            shown.append(child.content)
    return "".join(shown)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(word=words)
def test_any_words_are_text_in_markdown(word: str) -> None:
    shown = " ".join(visible(word).split(" "))
    assert rendered(f"# a {markdown(word)} b") == f"a {shown} b"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(word=words)
def test_any_words_are_one_cell_of_a_table(word: str) -> None:
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(f"| a | b |\n|---|---|\n| x{markdown(word)}x | y |\n")
    cells = [
        t.content for t, before in zip(tokens[1:], tokens, strict=False) if before.type == "td_open"
    ]
    assert len(cells) == 2
    assert cells[1] == "y"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(word=words)
def test_any_words_are_one_code_span(word: str) -> None:
    (inline,) = [
        token
        for token in markdown_it.MarkdownIt().parse(f"a {code_span(word)} b")
        if token.children
    ]
    kinds = [child.type for child in inline.children or ()]
    if visible(word).strip():
        assert kinds == ["text", "code_inline", "text"], kinds
        assert inline.children is not None
        assert inline.children[1].content.strip() == visible(word).strip()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(word=words)
def test_cards_hold_any_words_as_text(word: str) -> None:
    masks = Masks({"w": torch.tensor([True, False])})
    for origin in (
        {"source": word, "kind": "hub", "license": word, "family": "timm"},
        {"source": "x", "init": {"scheme": word, "seed": 0}},
    ):
        for card in (
            ticket_card(origin, masks, {word: {word: 1.0}}, method=word, pattern=word),
            derived_card(origin, masks, f"imported from {word}"),
        ):
            check_card(card, tables=int("Nothing was measured" not in card and "| model" in card))
            front = yaml.safe_load(card.split("---\n")[1])
            assert front.get("license", word) == word


def check_card(card: str, *, tables: int) -> None:
    """The card has the parts that it always has, and no other; nothing in it acts."""
    assert not ACTING.search(card)
    body = card.split("\n---\n", 1)[1] if card.startswith("---") else card
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(body)
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == 1
    assert kinds.count("table_open") == tables
    assert kinds.count("fence") == 1
    assert not {"html_block", "blockquote_open", "hr", "bullet_list_open"} & set(kinds)
    inner = {child.type for token in tokens for child in token.children or ()}
    assert inner <= {"text", "code_inline", "softbreak"}, inner


@pytest.fixture
def hostile(checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path) -> Path:
    """A ticket whose source, path and names are hostile."""
    source = tmp_path / "m [bold]v1[/bold] \x1b[31m\n| x"
    shutil.copytree(checkpoints["vit"], source)
    recipe = parse_recipe({
        "target_sparsity": 0.5, "method": "magnitude", "evaluation": {"limit": 4},
        "dataset": data_sets["pictures"],
    })  # fmt: skip
    out = tmp_path / "t[bold]\x1b[2J\nticket"
    return slt_compress.search(str(source), recipe=recipe, out=out).path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit):
        main(list(arguments))
    seen = capfd.readouterr()
    for text in (seen.out, seen.err):
        assert not ACTING.search(text), text
    return seen.out, seen.err


def test_every_command_shows_hostile_names(
    hostile: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = str(tmp_path / "m [bold]v1[/bold] \x1b[31m\n| x")
    capfd.readouterr()
    out, _ = run(capfd, "report", str(hostile))
    assert "m [bold]v1[/bold] \\x1b[31m\\n| x" in " ".join(out.split())
    run(capfd, "verify", str(hostile))
    out, err = run(capfd, "plan", source)
    assert not err
    assert "[bold]v1[/bold]" in out
    run(capfd, "evaluate", str(hostile))
    out, err = run(capfd, "export", str(hostile), "-o", str(tmp_path / "out[y]\x1b[1m"))
    assert "out[y]\\x1b[1m" in out
    run(capfd, "tickets", "diff", str(hostile), str(hostile))
    out, _ = run(capfd, "tickets", "merge", str(hostile), str(hostile), "--op", "and",
                 "-o", str(tmp_path / "merged[z]\n"))  # fmt: skip
    assert "merged[z]\\n" in out
    _, err = run(capfd, "verify", str(tmp_path / "no\x1b[31m[x]\nsuch"))
    assert err.count("\n") == 1
    assert "no\\x1b[31m[x]\\nsuch" in err
    for card in (hostile / "README.md", tmp_path / "out[y]\x1b[1m" / "README.md"):
        check_body(card.read_text())


def check_body(card: str) -> None:
    assert not ACTING.search(card)
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    title = tokens[1].content
    assert "bold\\] \\\\x1b\\[31m\\\\n\\| x" in title


def test_only_the_screen_knows_consoles_and_texts() -> None:
    """A new command cannot print past it by accident."""
    folder = Path(console.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        if file.name != "screen.py":
            assert "rich.console import Console" not in text, file
            assert "rich.text import" not in text, file
            assert "from_markup" not in text, file
        if file.name not in ("plain_lines.py", "json_output.py", "recipe_commands.py"):
            lines = [
                line.strip() for line in text.splitlines() if line.strip().startswith("print(")
            ]
            assert all("__version__" in line for line in lines), (file, lines)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(word=words)
def test_errors_of_any_words_are_one_line(word: str) -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", out)
        patch.setattr("slt_compress.cli.app.app", _raising(SltError(f"there is no {word}")))
        with pytest.raises(SystemExit):
            main([])
    assert out.getvalue() == f"error: there is no {visible(word)}\n"


def _raising(error: Exception) -> object:
    def fail(**options: object) -> None:
        raise error

    return fail


def test_plots_and_outlines_take_any_method_and_name() -> None:
    points = [{"method": "a\x1b[/x]", "sparsity": s, "mean": s} for s in (0.1, 0.5)]
    text = printed(plot(points, "t\n[/y]"))
    assert "a\\x1b[/x]" in text
    assert "t\\n[/y]" in text
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    module.add_module("[bold]x[/bold]", torch.nn.Linear(4, 4))
    plan = slt_compress.plan(module)
    assert "[bold]x[/bold]" in printed(*outline(plan))


def test_inputs_of_onnx_models_are_cells() -> None:
    from slt_compress.artifacts.onnx_file import OnnxInput

    lines = onnx_inputs([OnnxInput(name="a|b\n", dtype="float32", shape=(1, "n|m"))], {}, "x")
    assert "| a\\|b\\\\n | float32 | 1, n\\|m |" in lines
    assert artifact_card  # the rest of that card is checked with a ticket above
