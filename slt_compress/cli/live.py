"""Live: a running search in two lines at the foot of a terminal."""

from __future__ import annotations

from slt_compress.cli.following import Following
from slt_compress.cli.screen import Text
from slt_compress.cli.sparklines import sparkline
from slt_compress.storage.quantities import shortened

_BAR_AT_LEAST, _TITLE_AT_MOST = 8, 32
_SPARK_AT_LEAST, _SPARK_AT_MOST = 6, 24
_GAP = "  "


def lines(following: Following, width: int) -> list[Text]:
    """Two lines of at most `width` characters: how far the search is, and how well it goes.

    Step and time left are never cut; the title gives way first, then the bar.
    """
    return [_progress(following, width), *_figures(following, width)]


def _progress(following: Following, width: int) -> Text:
    noun = "step " if following.is_searching else ""
    count = f"{noun}{following.done:,}"
    if following.total is not None:
        count += f"/{following.total:,}"
    right = _GAP.join(part for part in (count if following.done else "", following.left()) if part)
    room = width - len(right) - (len(_GAP) if right else 0)
    title = shortened(following.part, max(0, min(_TITLE_AT_MOST, room - _BAR_AT_LEAST - 2)))
    bar = room - len(title) - len(_GAP)
    line = Text(title, "bold")
    if following.total and bar >= _BAR_AT_LEAST:
        filled = min(bar, bar * following.done // following.total)
        line.append(_GAP).append("━" * filled, "green").append("─" * (bar - filled), "dim")
    else:
        line.append(" " * max(0, bar + len(_GAP)))
    if right:
        line.append(_GAP).append(right)
    return line


def _figures(following: Following, width: int) -> list[Text]:
    texts = following.figures()
    if not texts:
        return []
    series = {"loss": following.losses, "held-out": following.held_out}
    drawn = [text for text in texts if text.split()[0] in series]
    least = (1 + _SPARK_AT_LEAST) * len(drawn)  # with a space after each
    while len(texts) > 1 and len(_GAP.join(texts)) + least > width:  # leave the last figures out
        texts = texts[:-1]
        least = (1 + _SPARK_AT_LEAST) * sum(text in texts for text in drawn)
    drawn = [text for text in drawn if text in texts]
    used = len(_GAP.join(texts)) + len(drawn)
    room = min(_SPARK_AT_MOST, (width - used) // max(1, len(drawn)))
    line = Text()
    for index, text in enumerate(texts):
        word = text.split()[0]
        line.append(_GAP if index else "")
        if word in series and room >= _SPARK_AT_LEAST:
            line.append(f"{word} ").append(sparkline(series[word], room), "cyan")
            line.append(text.removeprefix(word))
        else:
            line.append(text)
    return [line]
