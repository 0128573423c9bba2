"""``python -m patchlib`` executes the notebooks."""

from patchlib.notebooks import main

if __name__ == "__main__":
    main()
