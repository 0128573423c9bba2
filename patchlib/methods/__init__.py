"""Methods beside activation patching: ablation, interactions, paths, mediation, self-repair."""
