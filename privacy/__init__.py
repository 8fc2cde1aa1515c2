"""Differential privacy a reviewer can read in one sitting: accounting, calibration, noise, budget rules."""

if not __name__.startswith("echofed."):
    raise ImportError("import echofed.privacy, not privacy: the bare name would load a second copy")
