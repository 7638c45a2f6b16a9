"""Measures Hubline against what a user would pick instead, in the same run and by the same load; see docs/performance.md."""
