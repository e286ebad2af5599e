"""What the page shows, as HTML: pictures with their cost, what ran when, and how far it is."""

from collections.abc import Sequence
from html import escape
from math import ceil

from legodiff.sampling import Method, Sampling
from legodiff.studio.desk import Waiting
from legodiff.studio.drawing import Drawn, Inside
from legodiff.studio.progress import Progress

SMALLEST = 112  # pixels: smaller pictures are enlarged, unsmoothed

STYLE = """
.lego-pair {display: flex; flex-wrap: wrap; gap: 1.5rem}
.lego-pair > figure {flex: 1 1 16rem; min-width: 0; margin: 0}
.lego figcaption {margin: 0 0 .5rem; font-size: .95rem}
.lego .pictures {display: flex; flex-wrap: wrap; gap: 4px}
.lego img {display: block; max-width: 100%; margin: 0}
.lego .pictures img {image-rendering: pixelated}
.lego a:focus-visible, .lego button:focus-visible {outline: 3px solid #2563eb; outline-offset: 2px}
.lego progress {width: 100%; height: .8rem}
.lego .wrong {border-left: 4px solid #b91c1c; padding: .5rem .75rem; background: #fee2e2;
  color: #7f1d1d}
.lego table.strip {border-collapse: separate; border-spacing: 2px; font-size: .8rem;
  max-width: 40rem}
.lego table.strip th {font-weight: 400; text-align: left; padding: 0 .5rem 0 0;
  white-space: nowrap}
.lego table.strip thead th {text-align: center; padding: 0; max-width: .3rem; white-space: nowrap}
.lego table.strip td {width: 2rem; min-width: .3rem; height: 1.1rem; padding: 0;
  background: #d1d5db}
.lego table.strip td.on {background: #2563eb}
.lego table.strip td.guided {background: #7c3aed}
.lego .bar {background: #2563eb; height: 1rem; margin: 0 0 .5rem}
.lego .window {overflow: hidden}
.lego details {margin: .5rem 0; border: 1px solid #9ca3af; border-radius: 6px; padding: .5rem}
.lego pre {white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; margin: .25rem 0}
.lego button.copy {border: 1px solid currentColor; border-radius: 4px; padding: .1rem .6rem;
  cursor: pointer}
"""


def box(inside: str) -> str:
    """Everything of ours is in one, which the style is for."""
    return f'<div class="lego">{inside}</div>'


def wrong(line: str) -> str:
    """What cannot be, in one line."""
    return box(f'<p class="wrong" role="alert">{escape(line)}</p>')


def news(told: Waiting | Progress) -> str:
    """How far it is."""
    if isinstance(told, Waiting):
        return box(f'<p role="status">{told.ahead} before you in the queue</p>')
    bar = f'<progress max="1" value="{told.done:.3f}" aria-label="drawn so far"></progress>'
    left = "" if told.seconds_left is None else f", {told.seconds_left:.0f} s left"
    line = f'<p role="status">{told.done:.0%} drawn{left}</p>'
    if told.preview is None or told.size is None:
        return box(bar + line)
    shown = f'<img src="{told.preview}" alt="the picture so far" width="{width(told.size)}">'
    return box(f'{bar}{line}<div class="pictures">{shown}</div>')


def width(size: tuple[int, int]) -> int:
    """How wide a picture (height, width) is shown: small ones are enlarged by a whole number."""
    return size[1] * max(1, ceil(SMALLEST / min(size)))


def figure(drawn: Drawn, title: str, alts: Sequence[str]) -> str:
    """Pictures under what they cost."""
    shown = downloads(drawn.pictures, alts, width(drawn.size))
    told = f"<b>{escape(title)}</b><br>{cost(drawn)}"
    return f"<figure><figcaption>{told}</figcaption>{shown}</figure>"


def downloads(pictures: Sequence[str], alts: Sequence[str], wide: int) -> str:
    """Pictures, so many pixels wide, that are downloaded when they are clicked."""
    links = "".join(
        f'<a href="{path}" download title="download">'
        f'<img src="{path}" alt="{escape(alt)}" width="{wide}"></a>'
        for path, alt in zip(pictures, alts, strict=True)
    )
    return f'<div class="pictures">{links}</div>'


def cost(drawn: Drawn) -> str:
    """What an image cost, expected and measured."""
    line = (
        f"{drawn.flops / drawn.full_flops:.0%} of the FLOPs ({_flops(drawn.flops)} an image), "
        f"{drawn.nfe:,} evaluations of {drawn.method.sampler}; "
        f"<b>{_time(drawn.milliseconds)}</b> an image, expected {_time(drawn.expected)}"
    )
    if drawn.point is not None and drawn.point.error:
        line += f"; {drawn.point.error:.2g} deviations from full compute, by its plan"
    return line


def pair(*figures: str) -> str:
    """Figures side by side, or below each other where there is no room."""
    return box(f'<div class="lego-pair">{"".join(figures)}</div>')


def strip(method: Method, sampling: Sampling, bricks: Sequence[str]) -> str:
    """Bricks x noise levels: which ran when."""
    levels = sorted(set(method.levels(sampling)), reverse=True)
    head = "".join(f"<th>{_level(level, at, len(levels))}</th>" for at, level in enumerate(levels))
    rows = []
    for number in reversed(range(len(bricks))):
        cells = []
        for level in levels:
            runs = number in method.plan.bricks(level)
            kind = "guided" if method.evaluations(level) > 1 else "on"
            said = ("runs" if kind == "on" else "runs, guided") if runs else "skipped"
            told = f"{bricks[number]} at noise {level:.3g}: {said}"
            style = f' class="{kind}"' if runs else ""
            cells.append(f'<td{style} title="{escape(told)}" aria-label="{said}"></td>')
        rows.append(
            f'<tr><th title="{escape(bricks[number])}">brick {number}</th>{"".join(cells)}</tr>'
        )
    told = "Bricks that ran at each noise level, from noise to picture; grey: skipped"
    told += "; violet: guided." if any(method.evaluations(level) > 1 for level in levels) else "."
    return box(
        f'<figure><figcaption>{told}</figcaption><table class="strip">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></figure>"
    )


def inside(seen: Inside, bricks: Sequence[str]) -> str:
    """What each brick made of each noise level: one level at a time, chosen with a slider."""
    wide = width(seen.size)
    high = seen.size[0] * wide // seen.size[1]
    count, levels = len(bricks), len(seen.levels)
    figures = []
    for number, name in enumerate(bricks):
        ran = "".join("1" if number in some else "0" for some in seen.bricks)
        skipped = "" if number in seen.bricks[-1] else "(skipped)"
        figures.append(
            f'<figure><figcaption>{escape(name)} <span data-ran="{ran}">{skipped}</span>'
            "</figcaption>"
            f'<div class="window" role="img" aria-label="the estimate of {escape(name)}" '
            f'style="width:{wide}px;height:{high}px;image-rendering:pixelated;'
            f"background:url({seen.sheet}) calc(var(--level) * {-wide}px) "
            f"{-number * high}px / {levels * wide}px {count * high}px"
            '"></div></figure>'
        )
    told = " ".join(f"{level:.3g}" for level in seen.levels)
    moved = (
        "const box = this.closest('.inside'), at = this.value;"
        "box.style.setProperty('--level', at);"
        "box.querySelector('output').value = box.dataset.levels.split(' ')[at];"
        "for (const one of box.querySelectorAll('[data-ran]'))"
        " one.textContent = one.dataset.ran[at] == '1' ? '' : '(skipped)'"
    )
    return box(
        f'<div class="inside" style="--level:{levels - 1}" data-levels="{told}">'
        f"<label>From noise to picture: noise level <output>{seen.levels[-1]:.3g}</output>"
        f'<input type="range" min="0" max="{levels - 1}" value="{levels - 1}" step="1" '
        f'oninput="{moved}" style="width:100%"></label>'
        f'<div class="lego-pair">{"".join(figures)}</div></div>'
    )


def card(title: str, body: str, texts: Sequence[tuple[str, str]]) -> str:
    """A picture of the gallery, and texts that can be copied: (what it is, the text)."""
    copies = "".join(
        f"<p><b>{escape(name)}</b> "
        '<button class="copy" onclick="navigator.clipboard.writeText('
        "this.parentNode.nextElementSibling.textContent);this.textContent='copied'\">copy</button>"
        f"</p><pre>{escape(text)}</pre>"
        for name, text in texts
    )
    return f"<figure>{body}<details><summary>{escape(title)}</summary>{copies}</details></figure>"


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Values beside each other: a name, the value, and how it is said."""
    most = max(value for _, value, _ in rows)
    lines = "".join(
        f"<div>{escape(name)}: {escape(said)}</div>"
        f'<div class="bar" style="width:{100 * value / most:.1f}%"></div>'
        for name, value, said in rows
    )
    return box(f"<figure><figcaption>{escape(title)}</figcaption>{lines}</figure>")


def linked(path: str, alt: str) -> str:
    """A picture that opens at its full size."""
    return f'<a href="{path}" target="_blank"><img src="{path}" alt="{escape(alt)}"></a>'


def _level(level: float, at: int, count: int) -> str:
    """A noise level at some of the columns only."""
    step = max(1, count // 5)
    last = at == count - 1
    return f"{level:.2g}" if last or (at % step == 0 and at + step < count) else ""


def _flops(flops: float) -> str:
    return f"{flops / 1e9:.3g} GFLOPs" if flops >= 1e9 else f"{flops / 1e6:.3g} MFLOPs"


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.3g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"
