"""patchlib: activation patching as Zhang & Nanda (ICLR 2024) describe it."""

import sys
from types import ModuleType

import lazy_loader

# The public names are listed in __init__.pyi; each is imported when it is first used, so that
# `import patchlib` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # `patchlib.sweep` is the function; importing a module of that folder would replace it.
        if name != "sweep" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
