"""Multi-centre splits, the in-process federation, phantoms, baselines and reports."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.simulations, not simulations: the bare name would load a second copy")
