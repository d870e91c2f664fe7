"""More ways to ask for the skills, and ways that no sample text and no training prompt ever uses.

A pool whose wordings are the same everywhere is kind to any encoder. `HELD_OUT_WORDINGS` stand in `dev` and `test`
lines alone: an adapter must be found by what they mean. `{noun}` is the domain's noun.
"""

from __future__ import annotations

from collections.abc import Mapping

Wordings = Mapping[str, tuple[str, ...]]

EXTRA_WORDINGS: Wordings = {
    "copy": (
        "write down the same {noun} again",
        "give back the {noun} without any change",
        "transcribe the {noun} one by one",
        "reproduce the {noun} faithfully",
    ),
    "reverse": (
        "turn the {noun} around so that the final one leads",
        "list the {noun} in opposite direction",
        "flip the {noun} end to end",
        "recite the {noun} from finish to start",
    ),
    "sort": (
        "arrange the {noun} from lowest to highest",
        "bring the {noun} into natural order",
        "order the {noun} as an index would",
        "line up the {noun} by increasing size",
    ),
    "descend": (
        "arrange the {noun} from highest to lowest",
        "line up the {noun} by decreasing size",
        "put the greatest of the {noun} in front and go down",
        "grade the {noun} from best to worst",
    ),
    "next": (
        "shift the {noun} each one place forward",
        "move every one of the {noun} up by one",
        "write what follows each of the {noun}",
        "bump the {noun} each up by one",
    ),
    "previous": (
        "shift the {noun} each one place backward",
        "move every one of the {noun} down by one",
        "write what precedes each of the {noun}",
        "decrement the {noun} each by one",
    ),
    "double": (
        "repeat each of the {noun} two times in row",
        "print every one of the {noun} as pair",
        "stutter over the {noun} saying each one twice",
        "clone each of the {noun} once",
    ),
    "rotate": (
        "move the front of the {noun} to the back",
        "cycle the {noun} by one position",
        "send the first of the {noun} to the end of the queue",
        "shift the {noun} around in loop by one",
    ),
    "swap": (
        "flip every pair of the {noun}",
        "interchange the {noun} two by two",
        "switch each couple of the {noun}",
        "let neighboring {noun} change seats",
    ),
    "mirror": (
        "write the {noun} forth and back again",
        "append the reflection to the {noun}",
        "make the {noun} read the same both ways",
        "attach the mirror twin to the {noun}",
    ),
    "behead": (
        "drop the first of the {noun}",
        "skip the opening one of the {noun}",
        "forget the initial one of the {noun} and list the rest",
        "give all of the {noun} but the first",
    ),
    "alternate": (
        "take each other one of the {noun}",
        "keep the second fourth and so on of the {noun}",
        "thin out the {noun} by half",
        "choose only the evenly placed {noun}",
    ),
}
"""Used in sample texts and training besides the shipped testbed's own."""

HELD_OUT_WORDINGS: Wordings = {
    "copy": ("restate the {noun} word for word", "hand the {noun} back untouched"),
    "reverse": ("say the {noun} back to front", "what are the {noun} in inverted sequence"),
    "sort": ("please alphabetize or rank upward the {noun}", "which order do the {noun} take when sorted"),
    "descend": ("show the {noun} largest to smallest", "sort the {noun} downward from the maximum"),
    "next": ("add one to each of the {noun}", "tell the one after each of the {noun}"),
    "previous": ("subtract one from each of the {noun}", "tell the one preceding each of the {noun}"),
    "double": ("write all {noun} two times each", "give me every one of the {noun} in duplicate"),
    "rotate": ("the first of the {noun} goes last", "perform circular shift on the {noun}"),
    "swap": ("exchange every two adjacent {noun}", "neighbors among the {noun} trade positions"),
    "mirror": ("extend the {noun} into something symmetric", "follow the {noun} by their own reversed image"),
    "behead": ("omit the beginning of the {noun}", "strip the first away from the {noun}"),
    "alternate": ("list only every other one of the {noun}", "pick out the even numbered places of the {noun}"),
}
"""Of `dev` and `test` lines alone."""

SECOND_PARTS: Wordings = {
    "next": ("replace each by its successor", "advance each by one step", "increment each"),
    "previous": ("replace each by its ancestor", "rewind each to what came before", "decrement each"),
}
"""How a second skill is asked for after a first."""

HELD_OUT_SECOND_PARTS: Wordings = {
    "next": ("add one to each", "tell the one after each"),
    "previous": ("subtract one from each", "tell the one preceding each"),
}

JOINS = ("{first} and then {second}", "{first} and after that {second}", "first {first} then {second}")
HELD_OUT_JOINS = ("{first} and finally {second}", "{first} plus {second} as well")

UNSEEN_WORDINGS: Wordings = {
    "ends": (
        "extract just both outer ends of the {noun}",
        "report only the outermost two of the {noun}",
        "keep the {noun} at both extremes and lose the middle",
    ),
    "middle": (
        "strip both outer ends of the {noun}",
        "keep the inner {noun} only",
        "remove the outermost two of the {noun} and show the core",
    ),
}
"""Of skills that neither the base nor an adapter ever learns."""
