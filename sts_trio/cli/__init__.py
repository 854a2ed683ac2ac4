"""The command line: `sts-trio serve`, `sts-trio dub`."""
