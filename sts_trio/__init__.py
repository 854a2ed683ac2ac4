"""sts-trio: a server that dubs live broadcasts."""

__version__ = "0.1.0"
