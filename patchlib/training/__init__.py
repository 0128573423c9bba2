"""The models that ship with the project: how they are made, and what they can do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["certificate"])
