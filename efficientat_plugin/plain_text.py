"""Text that others wrote, where it is shown: on a terminal, in a spreadsheet."""


def shown(text: object) -> str:
    r"""A name that neither breaks a line nor a column, nor commands a terminal.

    Example
    -------
    >>> print(shown("dog\tand\ncat.wav"))
    dog\tand\ncat.wav
    """
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in str(text)
    )


def cell(text: object) -> str:
    """``shown``, and no formula to a spreadsheet, which would compute it.

    Source: OWASP, "CSV Injection".

    Example
    -------
    >>> cell("=HYPERLINK(A1)"), cell("Dog")
    ("'=HYPERLINK(A1)", 'Dog')
    """
    name = shown(text)
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name
