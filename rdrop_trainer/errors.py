"""The errors of this package: input a user can mend, and a Hub that does not do what it was asked."""

from __future__ import annotations


class InputError(ValueError):
    """Wrong input: the message says what was wrong, what was expected and what to do. Scripts exit with code 2."""


class HubError(RuntimeError):
    """The Hub could not be reached, refused, or sent something damaged; what lies on disk is untouched.

    The message says what happened and what to do. Scripts that had finished their work exit with code 3.
    """
