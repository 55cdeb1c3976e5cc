"""Draws charts as SVG and writes HTML, both escaped."""
