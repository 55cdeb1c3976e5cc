"""How a report looks: its style sheet, light and dark, on wide and narrow screens, and on paper."""

from collections.abc import Sequence

from transforms.charts.draw import COLORS


def _colors(name: str, colors: Sequence[str]) -> str:
    return "".join(f"--{name}{number}:{color};" for number, color in enumerate(colors))


DARK_COLORS = ("#5ab4e6", "#f0883e", "#3fc79a", "#e39ac4", "#f2b84b", "#8fd0f5", "#9a9a9a", "#f0f0f0")

_LIGHT = (
    "--ground:#f6f7f9;--paper:#fff;--ink:#1c2128;--soft:#5a6470;--grid:#e6e8eb;--frame:#8a939d;--line:#d9dde2;"
    "--good:#0b6b3a;--good-back:#dff3e7;--bad:#a4161a;--bad-back:#fde4e4;--odd:#7a4b00;--odd-back:#fdf0d5;--link:#0b5cad;"
    + _colors("mark", COLORS)
)
_DARK = (
    "--ground:#12161b;--paper:#1a2027;--ink:#e6e9ed;--soft:#a3adb8;--grid:#2b333c;--frame:#6b7682;--line:#303944;"
    "--good:#7ee2a8;--good-back:#12341f;--bad:#ff9a9a;--bad-back:#451a1c;--odd:#f6cf7f;--odd-back:#3a2c0c;--link:#7cbcff;"
    + _colors("mark", DARK_COLORS)
)

STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
@media print{{:root{{{_LIGHT}--ground:#fff}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}}
header,main,footer{{max-width:1080px;margin:0 auto;padding:0 20px}}
header{{padding-top:28px}}
h1{{font-size:24px;margin:0;line-height:1.3;overflow-wrap:anywhere}}
.name{{font-variant-numeric:tabular-nums}}
h2{{font-size:19px;margin:0 0 8px}}
h3{{font-size:16px;margin:20px 0 6px}}
h4{{font-size:15px;margin:0 0 4px;overflow-wrap:anywhere}}
p{{margin:4px 0 12px;max-width:75ch}}
a{{color:var(--link)}}
.soft{{color:var(--soft);font-size:13px}}
nav{{position:sticky;top:0;z-index:1;background:var(--ground);border-bottom:1px solid var(--line);overflow-x:auto;
white-space:nowrap;padding:10px max(20px,calc(50vw - 520px))}}
nav a{{margin-right:18px;text-decoration:none}}
section{{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:18px 0;
scroll-margin-top:52px}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:8px 0 18px}}
.tile{{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:10px 14px}}
.big{{font-size:26px;font-weight:600;line-height:1.25;font-variant-numeric:tabular-nums}}
.chip{{display:inline-block;border-radius:99px;padding:1px 10px;font-size:12px;font-weight:600;background:var(--grid);
color:var(--soft);vertical-align:middle;white-space:nowrap}}
.chip.passed{{background:var(--good-back);color:var(--good)}}
.chip.failed{{background:var(--bad-back);color:var(--bad)}}
.chip.forced{{background:var(--odd-back);color:var(--odd)}}
.failed-gates{{background:var(--bad-back);border-radius:10px;padding:12px 16px;margin:10px 0 14px;overflow-wrap:anywhere}}
.failed-gates ul{{margin:4px 0 10px;padding-left:20px}}
.figures{{display:flex;flex-wrap:wrap;gap:8px 28px}}
figure{{margin:8px 0 12px;max-width:100%}}
figcaption{{font-weight:600;font-size:14px;margin-bottom:4px}}
svg{{max-width:100%;height:auto;display:block}}
.wide{{overflow-x:auto;max-width:100%}}
.figures>.wide{{align-self:center}}
table{{border-collapse:collapse;font-size:13.5px;margin:4px 0 12px}}
caption{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}}
th,td{{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;font-weight:400}}
thead th{{color:var(--soft);font-size:12.5px;white-space:nowrap}}
tbody tr:last-child>*{{border-bottom:0}}
.number{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
#gates td:last-child{{min-width:320px}}
.examples{{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:16px}}
article{{border:1px solid var(--line);border-radius:8px;padding:12px 14px;min-width:0;break-inside:avoid}}
article ul{{margin:2px 0 10px;padding-left:18px;font-size:13.5px}}
article table{{width:100%}}
article td:nth-child(2){{width:100%}}
.hit{{color:var(--good);font-weight:700}}
details{{margin:2px 0 12px;font-size:13.5px}}
summary{{cursor:pointer;color:var(--link)}}
pre{{font-size:12px;overflow-x:auto;background:var(--ground);padding:10px;border-radius:6px}}
footer{{padding-bottom:30px}}
@media (max-width:560px){{
header,main,footer{{padding-left:12px;padding-right:12px}}section{{padding:14px 12px}}h1{{font-size:20px}}
#gates thead{{display:none}}
#gates tr{{display:grid;grid-template-columns:1fr auto auto auto;padding:6px 0;border-bottom:1px solid var(--line)}}
#gates tr>*{{border:0;padding:0 0 2px 10px}}
#gates tr>*:first-child{{padding-left:0}}
#gates td:last-child{{grid-column:1/-1;min-width:0;padding-left:0;color:var(--soft)}}
}}
@media print{{
nav{{display:none}}section{{border:0;padding:0}}figure,tr{{break-inside:avoid}}body{{font-size:11pt}}
}}
"""
