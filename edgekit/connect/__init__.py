"""Point editors and coding agents at a running server; README.md says how it is done."""
