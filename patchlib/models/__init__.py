"""What is loaded: models by name, from a folder, from the hub; and what is known of some."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["known"])
