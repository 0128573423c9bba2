"""What is looked at: figures, attention plots, widgets."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["choices", "plot"])
