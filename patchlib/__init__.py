"""patchlib: activation patching as Zhang & Nanda (ICLR 2024) describe it."""

import lazy_loader

# The public names are listed in __init__.pyi; each is imported when it is first used, so that
# `import patchlib` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
