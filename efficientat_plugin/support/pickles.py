"""Pickles that others wrote, looked through before anything is built of them."""

import pickle
import pickletools
from re import Pattern
from typing import BinaryIO

MAX_LEVELS = 100  # of tuples in tuples: to hash some 50 000 overflows the C stack
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
    """Refuses a pickle that would take memory or time without end.

    A container that stands in two places may double on each level, and to hash or
    print 30 levels takes for ever: only strings, numbers and names may be repeated.

    Arguments
    ---------
    file : BinaryIO
        Left where the pickle ends.
    max_places : int
        The memo is as wide as its last place, of which 6 bytes could ask for 2**32.
    names : Pattern or None
        Of what it may ask for, as "collections OrderedDict"; None: of anything, since
        who unpickles refuses the rest.
    calls_give_numbers : bool
        Whether what comes of a call may be repeated, too.

    Raises
    ------
    pickle.UnpicklingError
        For that, and for what no pickler writes.
    ValueError
        For what is no pickle.
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
            raise pickle.UnpicklingError(f"it asks for {argument!r:.80}")
        if name in REPEATED and argument in containers:
            raise pickle.UnpicklingError("it has a container in two places")
        if name in STORED:
            place = memoized if argument is None else argument
            memoized += argument is None
            numbered |= argument is not None
            if place > max_places or (memoized and numbered):
                raise pickle.UnpicklingError(f"place {place} of {max_places}")
            if not stack or stack[-1] is None:
                raise pickle.UnpicklingError("it stores what is not there")
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
    """What an opcode takes from the stack, the lowest first."""
    before = opcode.stack_before
    taken: list[int | None] = []
    if pickletools.markobject in before:
        while stack and stack[-1] is not None:
            taken.append(stack.pop())
        before = before[: before.index(pickletools.markobject) + 1]
    for _ in before:
        if not stack:
            raise pickle.UnpicklingError(f"nothing is there for {opcode.name}")
        taken.append(stack.pop())
    marks = taken.count(None)
    if marks != before.count(pickletools.markobject):
        raise pickle.UnpicklingError(f"a mark is in the way of {opcode.name}")
    return [level for level in reversed(taken) if level is not None]


def _level(
    opcode: pickletools.OpcodeInfo, taken: list[int], calls_give_numbers: bool
) -> int:
    """How many levels of containers what an opcode makes has."""
    if opcode.name == "STACK_GLOBAL":
        return 0
    if opcode.name == "BUILD" or (opcode.name in CALLS and calls_give_numbers):
        return taken[0]
    if opcode.name in FILLED:
        return max(taken[0], 1 + max(taken[1:], default=0))
    makes = opcode.stack_after[0].name in CONTAINERS or bool(taken)
    return 1 + max(taken, default=0) if makes else 0
