"""Measures finished tables, compares them, and decides with gates whether one may be published."""
