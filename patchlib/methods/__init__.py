"""Methods beside activation patching, with its results: ablation, interactions, paths."""
