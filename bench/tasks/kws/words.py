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

# Of everyday speech; the drawn speakers (see `speakers`) say some of these too.
COMMON_TEXT = """
about after again all always animal answer are ask baby back ball bank because before best better big black blue
boat book box boy bread brother buy call car chair change child city clean clear cold come could country day dear
did dinner do door dream drink drive early earth egg end enough evening every eye face family far father few field
find fire first fish flower food foot friend from garden girl give glass good great green group hand hard have head
hear heart help her here high home hope horse how idea into job jump just keep key kind king land large last late
laugh leave letter life like line list little live long look love lunch make man many mean milk minute money moon
more mother mouth much name near never new next nice number old our out over page paper part people phone place plan
play point price put question quick quiet rain ready red rest river road room round run said same school sea second
see send shall she ship short show side sign sing sister sit size sleep slow small smile some song soon sound south
speak spring start station stay stone store story street strong such summer sun sure take talk tell ten test thank
that there thing think this together tomorrow too train travel try under until use very voice wait walk wall want
warm was watch way weather week well were what wheel when where which white who why wind winter with woman wood word
work world would year yellow you young
"""
COMMON = tuple(COMMON_TEXT.split())

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
