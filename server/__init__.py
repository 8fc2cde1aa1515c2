"""The coordinator: rounds, checkpoints and the Flower ServerApp."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.server, not server: the bare name would load a second copy")
