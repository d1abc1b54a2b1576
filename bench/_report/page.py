"""The HTML page around plots and tables: one file without scripts or assets, light and dark, readable on a phone."""

import html
import time
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#667385;--rule:#e3e7ec;
--c0:#2563eb;--c1:#ea7317;--c2:#0d9488;--c3:#9333ea;--c4:#dc2626;--c5:#64748b;--good:#0a7d4b;--bad:#c22727}
@media(prefers-color-scheme:dark){:root{--bg:#11161d;--card:#1a212b;--ink:#e6ebf2;--soft:#95a3b5;--rule:#2b3542;
--c0:#6ea8fe;--c1:#fb9d50;--c2:#4fd1c5;--c3:#c78bfa;--c4:#f87171;--c5:#94a3b8;--good:#4ade80;--bad:#fb7185}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:auto;padding:20px 16px 48px}h1{font-size:1.5rem;margin:.2em 0}
h2{font-size:1.05rem;margin:0 0 .6em}
header p,.soft{color:var(--soft);margin:.1em 0;overflow-wrap:anywhere}code{font:13px ui-monospace,monospace}
.tiles,.cards{display:grid;gap:14px;margin:16px 0}.tiles{grid-template-columns:repeat(auto-fit,minmax(140px,1fr))}
.cards{grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr))}
.tile,.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;min-width:0}
.tile b{display:block;font-size:1.45rem;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.85rem}
.wide{grid-column:1/-1}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:500}
th:first-child,td:first-child{text-align:left;padding-left:0}td.text{text-align:left;white-space:normal}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}svg{width:100%;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}text.x{text-anchor:middle}text.y{text-anchor:end}
.grid{stroke:var(--rule);fill:none}.line{fill:none;stroke-width:2;stroke-linejoin:round}
.limit{stroke:var(--bad);stroke-dasharray:5 4;fill:none}.mark{stroke:var(--c4);stroke-dasharray:2 3;fill:none}
.keys{display:flex;flex-wrap:wrap;gap:4px 16px;margin:.4em 0 0;color:var(--soft);font-size:.85rem}
.keys i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
""" + "".join(
    f".line.c{i}{{stroke:var(--c{i})}}.bar.c{i},.dot.c{i}{{fill:var(--c{i})}}i.c{i}{{background:var(--c{i})}}"
    for i in range(6)
)


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """Return (figure, description) pairs as large numbers."""
    inner = "".join(
        f"<div class=tile><b>{html.escape(figure)}</b><span>{html.escape(name)}</span></div>"
        for figure, name in figures
    )
    return f"<div class=tiles>{inner}</div>"


def card(title: str, inner: str, *, wide: bool = False) -> str:
    """Return a box with a plot or a table in it; `inner` is HTML."""
    return f'<section class="card{" wide" if wide else ""}"><h2>{html.escape(title)}</h2>{inner}</section>'


def cards(boxes: Sequence[str]) -> str:
    return f"<div class=cards>{''.join(boxes)}</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text cells; `pass` and `FAIL` are coloured, and long cells wrap."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{top}</tr>{body}</table></div>"


def write(path: Path, title: str, notes: Sequence[str], body: str) -> None:
    """Write the whole page; `notes` are lines below its title."""
    paragraphs = "".join(f"<p>{html.escape(note)}</p>" for note in (*notes, time.strftime("%Y-%m-%d %H:%M:%S %Z")))
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<main><header><h1>{html.escape(title)}</h1>{paragraphs}</header>{body}</main></html>\n"
    )


def _cell(text: str) -> str:
    kind = {"pass": " class=good", "FAIL": " class=bad"}.get(text, " class=text" if len(text) > 24 else "")
    return f"<td{kind}>{html.escape(text)}</td>"
