"""Measured claims: each module prints a ratio against a named peer or limit, in one run."""
