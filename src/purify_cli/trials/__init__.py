"""Purifiers that are tried one after the other and judged, for `auto`."""
