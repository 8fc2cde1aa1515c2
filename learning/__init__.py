"""What is learned: tasks, models, transforms, the training and evaluation loops. No Flower here."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.learning, not learning: the bare name would load a second copy")
