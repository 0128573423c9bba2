"""CircuitsVis attention plots that need no network and leave notebooks small.

`circuitsvis` itself asks the internet which copy of its bundle to show and may write all 1.3 MB
of it into every output. Here the page gets the installed copy from the kernel, once, and the
notebook file gets none of it.
"""

import hashlib
import json
from importlib import resources
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from patchlib.errors import whole
from patchlib.show.picture import Shown, fit_page
from patchlib.show.plot import attention as draw_attention
from patchlib.show.plot import check_attention

_DECIMALS = 4
# How many patterns the picture has room for.
_IN_PICTURE = 6

_ESM = """
// One record per page: every plot imports its own copy of this module.
const page = (globalThis.patchlibCircuitsVis ??= newRecord());
const ASK_AGAIN_MS = 30000;
const MARGIN_PX = 5, LABELS_PX = 160, PER_TOKEN_PX = 17;

function newRecord() {
  const record = { askedAt: -Infinity };
  record.ready = new Promise((resolve) => { record.resolve = resolve; });
  return record;
}

// The plots wait for the same answer. A kernel that was restarted never gives it, so that a plot
// drawn much later asks again.
function circuitsVis(model) {
  if (globalThis.CircuitsVis) return Promise.resolve(globalThis.CircuitsVis);
  if (Date.now() - page.askedAt > ASK_AGAIN_MS) {
    page.askedAt = Date.now();
    model.send({ kind: "bundle wanted" });
  }
  return page.ready;
}

// A classic script: the bundle declares CircuitsVis with `var` at its top level, and as it is
// strict code, `eval` would keep that to itself.
function runBundle(text) {
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
  script.remove();
}

// The same plot may be on the page twice.
function freeId(id) {
  let free = id;
  for (let n = 2; document.getElementById(free); n++) free = `${id}-${n}`;
  return free;
}

// The answer is the model's business: the view that asked may be gone when it comes.
function initialize({ model }) {
  model.on("msg:custom", (message) => {
    if (message.kind !== "bundle") return;
    if (!globalThis.CircuitsVis) runBundle(message.text);
    page.resolve(globalThis.CircuitsVis);
  });
}

function render({ model, el }) {
  const height = model.get("height");
  const box = document.createElement("div");
  box.className = "patchlib-attention-heads";
  box.style.height = `${height}px`;
  const plot = document.createElement("div");
  // Wide enough to label every token; a taller box gives a larger plot.
  const side = Math.max(height - MARGIN_PX, LABELS_PX + PER_TOKEN_PX * model.get("tokens").length);
  plot.style.setProperty("--side", `${side}px`);
  box.append(plot);
  el.append(box);

  let removed = false;
  async function draw() {
    const vis = await circuitsVis(model);
    // CircuitsVis looks the element up in the document, which a notebook may fill later.
    while (!plot.isConnected && !removed) await new Promise(requestAnimationFrame);
    if (removed) return;
    plot.id = freeId(model.get("element_id"));
    vis.render(plot.id, vis.AttentionHeads, {
      attention: model.get("attention"),
      attentionHeadNames: model.get("names"),
      tokens: model.get("tokens"),
    });
  }
  draw().catch((error) => { box.textContent = `The plot could not be drawn: ${error}`; });

  return () => {
    removed = true;
    box.remove();
  };
}

export default { initialize, render };
"""

# The plot's own colours are made for a white page, also where the notebook is dark. CircuitsVis
# stacks the small patterns and the large one and sizes both for the whole window; side by side
# they need less height. It gives its elements no classes, and sizes them in place.
_CSS = """
.patchlib-attention-heads { overflow: auto; background: white; color: black; }
.patchlib-attention-heads > div > div {
  display: grid; grid-template: auto 1fr / 170px var(--side);
  max-width: none !important; margin: 0 !important; padding: 0 4px !important;
}
.patchlib-attention-heads > div > div > h3 { margin: 6px 0 !important; font-size: 13px; }
.patchlib-attention-heads > div > div > div { margin: 0 !important; align-content: flex-start; }
.patchlib-attention-heads > div > div > div:nth-of-type(1) > div {
  flex: 0 0 80px !important; max-width: 80px !important;
}
.patchlib-attention-heads > div > div > div:nth-of-type(2) { grid-area: 1 / 2 / span 2; }
.patchlib-attention-heads > div > div > div:nth-of-type(2) > div { padding: 0 !important; }
.patchlib-attention-heads > div > div > div:nth-of-type(2) h3,
.patchlib-attention-heads > div > div > div:nth-of-type(3) { display: none; }
.patchlib-attention-heads h2, .patchlib-attention-heads h4 { font-size: 12px; }
"""


class AttentionHeads(anywidget.AnyWidget):
    """CircuitsVis' plot of attention heads: small patterns to choose from and one in full size.

    Args:
        attention: the pattern of each head; row = destination token, column = source token.
        tokens: the tokens of the prompt, one for each position.
        names: the name of each head.
        height: height of the plot in pixels; what does not fit is reached by scrolling.
    """

    _esm = _ESM
    _css = _CSS

    attention = traitlets.List(traitlets.List(traitlets.List(traitlets.Float()))).tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    element_id = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        attention: Float[Tensor, "head dest src"] | Float[np.ndarray, "head dest src"],
        tokens: list[str],
        names: list[str],
        height: int = 420,
    ) -> None:
        values = torch.as_tensor(attention).detach().cpu().double().numpy()
        check_attention(values, [tokens] * len(names), names)
        height = whole("height", height, 1)
        # Four decimals are more than a colour shows; they keep the widget's state small.
        rounded = values.round(_DECIMALS).tolist()
        super().__init__(
            attention=rounded,
            tokens=list(tokens),
            names=list(names),
            height=height,
            element_id=_element_id(rounded, tokens, names),
        )
        self.on_msg(_answer)

    def _ipython_display_(self) -> None:
        """The plot, and for a saved notebook a picture of the first patterns."""
        names = self.names[:_IN_PICTURE]
        figure = draw_attention(torch.tensor(self.attention[:_IN_PICTURE]), self.tokens, names)
        more = len(self.names) - len(names)
        if more:
            figure.suptitle(f"the first {len(names)} of {len(self.names)} heads", fontsize=9)
        fit_page(figure)
        Shown(self).keep(figure.bundle() | {"text/plain": repr(self)})

    def __repr__(self) -> str:
        heads, tokens = len(self.names), len(self.tokens)
        return (
            f"AttentionHeads({heads} head{'s' * (heads != 1)}, {tokens} token{'s' * (tokens != 1)})"
        )


def _element_id(attention: list[Any], tokens: list[str], names: list[str]) -> str:
    """Name the plot after what it shows, so that the same plot has the same name in every run."""
    content = json.dumps([attention, tokens, names])
    return f"attention-heads-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _answer(widget: AttentionHeads, message: Any, _buffers: Any) -> None:
    """Send the bundle to a page that asks for it."""
    if message == {"kind": "bundle wanted"}:
        bundle = resources.files("circuitsvis") / "dist" / "cdn" / "iife.js"
        widget.send({"kind": "bundle", "text": bundle.read_text(encoding="utf-8")})
