"""The one exception of the package."""


class PatchlibError(ValueError):
    """Raised for every request that patchlib refuses.

    The message names what was given, what is allowed and the way out, so that it can be read
    without the source at hand.
    """
