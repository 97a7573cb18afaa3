"""A page as headless Chromium lays it out: what overflows, what scrolls, and text that cannot be read."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", *(f"--disable-{word}" for word in QUIET)]
LOOK = """<script>
document.querySelectorAll('details').forEach(d => d.open = true);
const named = e => e.getAttribute('aria-label') || e.tagName + ' ' + e.textContent.trim().slice(0, 40);
const wide = [...document.querySelectorAll('.wide')], all = [...document.body.querySelectorAll('*')];
const scrolls = wide.filter(e => e.scrollWidth > e.clientWidth + 1);
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
                     return .2126 * r + .7152 * g + .0722 * b; };
const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                      if (c[3] === undefined || c[3] > 0) return c; } return [255, 255, 255]; };
const contrast = e => { const style = getComputedStyle(e), own = e.closest('svg') ? style.fill : style.color;
  const [a, b] = [light(rgb(own)), light(behind(e))].sort((x, y) => y - x); return (a + .05) / (b + .05); };
const texts = all.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
  .filter(e => !['STYLE', 'SCRIPT', 'style'].includes(e.tagName));
frameElement.outerHTML = '<pre class="seen">' + JSON.stringify({
  width: innerWidth, dark: matchMedia('(prefers-color-scheme: dark)').matches,
  page: document.documentElement.scrollWidth,
  texts: texts.length, scrolls: scrolls.map(named),
  without_cue: scrolls.filter(e => !getComputedStyle(e).backgroundImage.includes('gradient')
    || getComputedStyle(e).overflowX !== 'auto').map(named),
  beyond: all.filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > innerWidth + 1).map(named),
  faint: texts.filter(e => contrast(e) < 4.5).map(e => named(e) + ' ' + contrast(e).toFixed(1)),
}).replaceAll('&', '&amp;').replaceAll('<', '&lt;') + '</pre>';
</script>"""


def seen(page: str, folder: Path, widths: Sequence[int], *, dark: bool) -> dict[int, dict[str, Any]]:
    """What the browser makes of a page at each width in CSS pixels, all of it unfolded.

    A window has a least width and a frame has none; each frame writes what it finds into its own place.
    """
    inner = html.escape(page.replace("</body>", f"{LOOK}</body>"))
    frames = (
        f'<iframe srcdoc="{inner}" style="width: {width}px; height: 1000px; border: 0"></iframe>' for width in widths
    )
    file = folder / "looked_at.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><body>{"".join(frames)}')
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [str(CHROMIUM), *FLAGS, "--dump-dom", scheme, f"--user-data-dir={folder / 'chromium'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    written = re.findall(r'<pre class="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    found = {one["width"]: one for one in (json.loads(html.unescape(text)) for text in written)}
    assert list(found) == list(widths), done.stderr
    assert {one["dark"] for one in found.values()} == {dark}
    return found
