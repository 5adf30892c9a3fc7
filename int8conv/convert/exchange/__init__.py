"""Folders saved by other tools."""
