"""Plots of a benchmark report: how long runs took and how much that varied, what a whole image takes, how the time grows
with the size, and what accuracy it buys.

They are made from the JSON document of a report (`report.json`), so an old one can be drawn again. Each variant has a row of
its own, where long names have room, and keeps its colour and marker in every plot. Axes of time start at zero. The row of a
variant that was wrong, failed or was not measured says so.
"""
