"""Text on its way to a person."""


def printable(text: str) -> str:
    """Makes one line of a text that holds names from files, which may hold anything.

    Args:
        text: Any text.

    Returns:
        The same without line breaks; what could steer a terminal is shown as an escape.
    """
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
