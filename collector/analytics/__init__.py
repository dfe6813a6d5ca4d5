"""Analyses of what was stored: nine questions, each in a file of its own, all registered in `registry`."""
