"""The `echofed` command: one thin module per role, imported only when its command runs."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.cli, not cli: the bare name would load a second copy")
