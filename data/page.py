"""An HTML page that needs nothing else: the frame and the colours that all of ours share."""

from html import escape


def page(title: str, body: str, style: str) -> str:
    """A page in the reader's light or dark colours.

    Args:
        title: plain text.
        body: HTML.
        style: CSS beside what is common. Colours are `--line`, `--card`, `--quiet`, `--bar`; of
            answers `--right`, `--wrong`, `--tint`; of figures `--model`, `--blind`, `--majority`.
    """
    return _PAGE.format(title=escape(title), style=_STYLE + style, body=body)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#e3e3de, #33353a);
  --card: light-dark(#fff, #1d1f23); --quiet: light-dark(#63676e, #9aa0a8);
  --bar: light-dark(#3d6fb4, #7ba6e0); --right: light-dark(#177245, #63cf97);
  --wrong: light-dark(#c02f22, #ff8f80); --tint: light-dark(#fdf0ee, #3a2322);
  --model: light-dark(#1f55c4, #82aaff); --blind: light-dark(#b2560d, #efa55c);
  --majority: light-dark(#70757d, #989da5); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 2rem 1.5rem 4rem;
  font: 14px/1.45 system-ui, sans-serif;
  background: light-dark(#f6f6f2, #131417); color: light-dark(#1c1e21, #e8e8e4); }
h1 { font-size: 1.6rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none;
  margin: 0 0 1.4rem; padding: 0; color: var(--quiet); }
"""
