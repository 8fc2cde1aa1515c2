"""How updates become one model: aggregation x server optimiser x client term x shared layers. No torch here."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.strategies, not strategies: the bare name would load a second copy")
