"""Packages the three plain-named packages, so that `--setup_file ./setup.py` can ship them to workers."""

from setuptools import setup

setup()
