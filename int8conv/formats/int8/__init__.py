"""The converted folder of ``SPEC.md``: names, layout, manifest, statistics, checks."""
