"""Makes untrusted text safe to show on a terminal or in a spreadsheet."""

from collections.abc import Iterable

FORMULA = ("=", "+", "-", "@")  # first characters of a formula in a spreadsheet


def shown(text: object) -> str:
    r"""Escapes line breaks, tabs and terminal commands in a name.

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


MOST_SHOWN = 300  # characters of a name in a list


def some_of(names: Iterable[object], number: int = 5) -> str:
    """Lists the first names, each as ``shown``, and how many more there are.

    Example
    -------
    >>> some_of(["a.wav", "b.wav", "c.wav"], number=2)
    'a.wav, b.wav and 1 more'
    """
    every = list(names)
    text, more = ", ".join(map(_begun, every[:number])), len(every) - number
    return f"{text} and {more} more" if more > 0 else text


def _begun(name: object) -> str:
    text = shown(name)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def cell(text: object) -> str:
    """As ``shown``, and quotes text that a spreadsheet would compute as a formula.

    Text that begins like one but calls nothing is unchanged: the name "-20dB".

    Source: OWASP, "CSV Injection".

    Example
    -------
    >>> cell("=HYPERLINK(A1)"), cell("@SUM(A1)"), cell("@home")
    ("'=HYPERLINK(A1)", "'@SUM(A1)", '@home')
    """
    name = shown(text)
    return f"'{name}" if _computes(name) else name


def of_cell(text: str) -> str:
    """Undoes ``cell``, except for characters that it escaped.

    Example
    -------
    >>> of_cell("'=HYPERLINK(A1)"), of_cell("Dog"), of_cell("'quoted'")
    ('=HYPERLINK(A1)', 'Dog', "'quoted'")
    """
    return text[1:] if text.startswith("'") and _computes(text[1:]) else text


def path_cell(path: object) -> str:
    """As ``shown``, and not a formula, but still a path that leads to the file.

    Example
    -------
    >>> path_cell("-rock.wav"), path_cell("a/b.wav")
    ('./-rock.wav', 'a/b.wav')
    """
    name = shown(path)
    return f"./{name}" if name.startswith(FORMULA) else name


def _computes(name: str) -> bool:
    """Whether a spreadsheet would do more than show an error."""
    if name.startswith("="):
        return True
    return name.startswith(FORMULA) and any(mark in name for mark in "(|!")
