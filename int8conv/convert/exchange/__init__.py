"""Folders that other tools have saved."""
