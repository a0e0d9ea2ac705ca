"""Procedural faces: the embedded data set, drawn by JAX from a seed, a person and a number."""
