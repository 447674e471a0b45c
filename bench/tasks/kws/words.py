"""The words that are spoken: ten keywords, and words that are none of them.

Homophones of a keyword (know, write, knot, lefts, ...) are left out, since no listener could tell them apart, and so
are words that begin like one (note, going, upper), since a causal listener has to decide before their end.
"""

from __future__ import annotations

from edgemem.tasks.kws import KEYWORDS, LABELS

UNKNOWN = LABELS.index("unknown")
SILENCE = LABELS.index("silence")

# The other words of Speech Commands, so that a model trained here can be judged there.
SPEECH_COMMANDS = (
    "backward", "bed", "bird", "cat", "dog", "eight", "five", "follow", "forward", "four", "happy", "house", "learn",
    "marvin", "nine", "one", "seven", "sheila", "six", "three", "tree", "two", "visual", "wow", "zero",
)  # fmt: skip
CONFUSABLE = (
    "yet", "guess", "less", "now", "low", "though", "cup", "us", "town", "dawn", "done", "lift", "let", "ride",
    "light", "night", "own", "in", "gone", "of", "cough", "stock", "step", "shop", "top", "cow", "god",
)  # fmt: skip
OTHER = ("please", "then", "turn", "the", "and", "music", "kitchen", "water", "hello", "computer", "time", "today")

SEEN_UNKNOWN = (*SPEECH_COMMANDS, *CONFUSABLE, *OTHER)
# Only in the test set: a word that is not a keyword must be rejected without having been heard in training.
UNSEEN_UNKNOWN = (
    "chess", "nose", "noun", "loft", "rat", "often", "toe", "cool", "lamp", "table", "open", "morning", "window",
    "read", "still", "apple",
)  # fmt: skip


def unknown_words(split: str) -> tuple[str, ...]:
    """The words of a split that are not keywords."""
    return (*SEEN_UNKNOWN, *UNSEEN_UNKNOWN) if split == "test" else SEEN_UNKNOWN


def label_of(word: str) -> int:
    """Index in `LABELS`."""
    return LABELS.index(word) if word in KEYWORDS else UNKNOWN
