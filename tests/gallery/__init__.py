"""Cancellation tests to copy for engines and servers of your own: docs/testing.md walks through them."""
