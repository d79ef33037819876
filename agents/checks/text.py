"""Text that is not ours, to be shown: a terminal obeys control characters, whoever wrote them."""


def printable(text: str) -> str:
    """The text with everything that a terminal or page would not show as a character written as an escape.

    Line ends and tabs stay. Control characters, formatting characters that turn writing around, line separators and
    halves of surrogate pairs become ``\\x1b``, ``\\u202e``, ...
    """
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)
