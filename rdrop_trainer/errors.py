"""The errors of this package: wrong input, which the user can correct, and a request that failed on the Hub."""

from __future__ import annotations

_LONGEST = 1000  # characters of a message; only a quoted input makes it longer


def one_line(text: str) -> str:
    """A text as one printable line. Line breaks become spaces; other characters that are not printable are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))


class InputError(ValueError):
    """Wrong input. The message says what was wrong, what was expected and what to do. Scripts exit with code 2.

    The message is always one printable line. Unprintable characters in a quoted input are escaped, and the middle of a
    long message is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(one_line(message))


class HubError(RuntimeError):
    """The Hub could not be reached, refused a request, or sent damaged data. Files on disk are untouched.

    The message says what happened and what to do, in one printable line, whatever the server wrote. Scripts that had
    finished their work exit with code 3.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
