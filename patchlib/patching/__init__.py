"""`patch`: what is restored, the engines that run it, and what each pass measures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["metrics"])
