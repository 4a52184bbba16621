"""Figures that papers report, each as its released code computes it, and as it is right where the two differ."""
