"""Measurements, as ratios against a baseline in the same run: `python -m benchmarks [--tiny] [NAME ...]`.

A benchmark is a module with `main(folder, size)` and two sizes: `FULL`, whose figures are told in README.md, and `TINY`, which
takes seconds, needs nothing that is not in the repository, and says nothing about speed.
"""
