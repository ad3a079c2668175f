"""Baseline against candidate: paired designs, exact statistics, verdicts that state their own error (docs/gate.md)."""
