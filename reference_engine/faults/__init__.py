"""Faults that the reference engine can be given on purpose, each named after a public bug; off unless asked for.

``registry`` holds the catalogue, ``lab`` puts a fault into a built engine, the other modules hold the faults by theme.
``python -m reference_engine.faults --list`` prints them; ``docs/faults.md`` explains how to use them.
"""
