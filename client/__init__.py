"""The hospital node: data registry, image cache and the Flower ClientApp."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.client, not client: the bare name would load a second copy")
