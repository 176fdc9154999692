"""The eval suite: benchmark protocols as probes on features, their metrics and their statistics.

Probes are tensor-only: they know no model and do no I/O. ``segmentation`` and ``correspondence``
hold one scoring function per unit type; ``metrics`` and ``stats`` are pure functions.
"""
