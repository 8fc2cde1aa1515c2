"""What both sides agree on byte for byte: study document, wire messages, array encoding, errors."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.protocol, not protocol: the bare name would load a second copy")
