"""Fuzzing of what reads files from outside: valid inputs, changed at random, must end in a result or in an error of ours.

`make fuzz`, or `python -m tests.fuzz --count 10000 --seed 1`. A small share runs with the tests. A target reads a folder and
returns what it made of each record; `mutations.py` changes bytes, or single values in the structure of a file, in which case all
other records must come out as before.
"""
