"""Of all tests."""

from __future__ import annotations

from hypothesis import settings

# A machine that is busy with something else must not fail a rule.
settings.register_profile("steady", deadline=None, max_examples=60)
settings.load_profile("steady")
