"""The widget as a page of its own, which `make dashboard` opens."""

import patchlib as pl

pl.explore(pl.load_model(), show=False).widget
