"""The one error type for input a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Wrong input: the message says what was wrong, what was expected and what to do. Scripts exit with code 2."""
