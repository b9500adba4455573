"""The errors of this package: input a user can mend, and a Hub that does not do what it was asked."""

from __future__ import annotations

_LONGEST = 1000  # characters of a message; more comes only from the input it quotes


class InputError(ValueError):
    """Wrong input: the message says what was wrong, what was expected and what to do. Scripts exit with code 2.

    The message is one printable line, whatever it quotes: other characters are escaped, and the middle of a long one
    is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        message = " ".join(message.splitlines())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class HubError(RuntimeError):
    """The Hub could not be reached, refused, or sent something damaged; what lies on disk is untouched.

    The message says what happened and what to do. Scripts that had finished their work exit with code 3.
    """
