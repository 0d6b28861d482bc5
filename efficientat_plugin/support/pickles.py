"""Checks untrusted pickles before any object is built from them."""

import pickle
import pickletools
from re import Pattern
from typing import BinaryIO

MAX_LEVELS = 100  # of nested tuples: hashing some 50 000 overflows the C stack
REFUSED = ("DUP", "POP", "POP_MARK", "INST", "OBJ", "EXT1", "EXT2", "EXT4")
CONTAINERS = ("list", "tuple", "dict", "set", "frozenset", "bytearray")
FILLED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")
CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX")
STORED = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
REPEATED = ("GET", "BINGET", "LONG_BINGET")


def check_pickle(
    file: BinaryIO,
    max_places: int,
    names: Pattern[str] | None = None,
    calls_give_numbers: bool = False,
) -> None:
    """Refuses a pickle that would take unlimited memory or time.

    A container that is used twice may double on each level, and hashing or printing 30
    levels takes for ever: only strings, numbers and names may be repeated.

    Arguments
    ---------
    file : BinaryIO
        Left at the end of the pickle.
    max_places : int
        Largest place in the memo, which is as long as its last place: 6 bytes could
        ask for 2**32.
    names : Pattern or None
        Names that it may load, such as "collections OrderedDict"; None: any, since the
        unpickler refuses the others.
    calls_give_numbers : bool
        Whether results of calls may be repeated, too.

    Raises
    ------
    pickle.UnpicklingError
        For such a pickle, and for one that no pickler writes.
    ValueError
        If the file is not a pickle.
    """
    stack: list[int | None] = []  # levels of containers, 0 of a string; None: a mark
    containers: set[int] = set()  # their places in the memo
    memoized = 0
    numbered = False  # places are either counted or named, in one pickle
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in REFUSED:
            raise pickle.UnpicklingError(f"it has {name}")
        if name == "GLOBAL" and names and not names.fullmatch(str(argument)):
            raise pickle.UnpicklingError(f"it loads {argument!r:.80}")
        if name in REPEATED and argument in containers:
            raise pickle.UnpicklingError("it uses a container twice")
        if name in STORED:
            place = memoized if argument is None else argument
            memoized += argument is None
            numbered |= argument is not None
            if place > max_places or (memoized and numbered):
                raise pickle.UnpicklingError(f"place {place} of {max_places}")
            if not stack or stack[-1] is None:
                raise pickle.UnpicklingError("it stores from an empty stack")
            (containers.add if stack[-1] else containers.discard)(place)
        elif name == "MARK":
            stack.append(None)
        else:
            taken = _take(stack, opcode)
            if opcode.stack_after:
                level = _level(opcode, taken, calls_give_numbers)
                if level > MAX_LEVELS:
                    raise pickle.UnpicklingError(f"more than {MAX_LEVELS} levels")
                stack.append(level)


def _take(stack: list[int | None], opcode: pickletools.OpcodeInfo) -> list[int]:
    """Pops what an opcode takes from the stack, the lowest first."""
    before = opcode.stack_before
    taken: list[int | None] = []
    if pickletools.markobject in before:
        while stack and stack[-1] is not None:
            taken.append(stack.pop())
        before = before[: before.index(pickletools.markobject) + 1]
    for _ in before:
        if not stack:
            raise pickle.UnpicklingError(f"the stack is empty at {opcode.name}")
        taken.append(stack.pop())
    marks = taken.count(None)
    if marks != before.count(pickletools.markobject):
        raise pickle.UnpicklingError(f"a misplaced mark at {opcode.name}")
    return [level for level in reversed(taken) if level is not None]


def _level(
    opcode: pickletools.OpcodeInfo, taken: list[int], calls_give_numbers: bool
) -> int:
    """Counts the levels of containers in the result of an opcode."""
    if opcode.name == "STACK_GLOBAL":
        return 0
    if opcode.name == "BUILD" or (opcode.name in CALLS and calls_give_numbers):
        return taken[0]
    if opcode.name in FILLED:
        return max(taken[0], 1 + max(taken[1:], default=0))
    makes = opcode.stack_after[0].name in CONTAINERS or bool(taken)
    return 1 + max(taken, default=0) if makes else 0
