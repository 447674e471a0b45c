"""Who speaks in which split: a speaker is in one split only, whatever the accent.

A speaker of espeak-ng is a variant (its formants and pitch range); accents are shared by all. Variants that are small
changes of one another stay together, so that a test speaker has no near twin in training. Hundreds more, for training
alone, are drawn at random (`speakers`). A speaker of flite is a
recorded person; kal and kal16 are the same one. There are only four of these, and three are the only ones of their
kind: slt is the only woman, awb the only Scotsman, kal the only one joined from diphones. A spotter that has heard none
of a kind hardly understands it (the model card has numbers), so these three are for training; rms, an American man as
kal is and recorded as awb was, is for testing.
"""

from __future__ import annotations

from bench.tasks.kws.speakers import drawn_speakers

SPLITS = ("train", "valid", "test")

# Of espeak-ng. `en` is the British one: `en-gb` does not heed the variant, so all its speakers would be the same.
ACCENTS = (
    "en", "en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip

# espeak-ng --voices=variant; DEFAULT is the voice without a variant. Left out: klatt6, which sounds as klatt, whispers,
# and effects such as echoes and robots, in which a listener has trouble too.
DEFAULT = ""
ESPEAK = {
    "train": (
        DEFAULT, "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "adam", "benjamin", "Mr serious", "Tweaky",
        "Diogo", "Henrique", "Hugo", "anika", "michel", "miguel",
        "Mario", "Michael", "gustave", "marcelo",
        "Nguyen", "m7", "m8", "robosoft", "robosoft2",
        "robert", "rob", "quincy", "travis",
        "Storm", "victor", "Denis",
        "aunty", "belinda", "linda", "f1", "f3", "f4",
        "boris", "max", "paul",
        "Alex", "antonio", "croak", "ed", "grandpa", "kaukovalta", "m1", "m2", "m4", "m6", "sandro", "zac",
    ),
    "valid": (
        "shelby", "Jacky", "pablo", "pedro", "edward", "edward2", "norbert", "m5", "john", "Marco", "grandma", "Mike",
    ),
    "test": (
        "Alicia", "Annie", "Andrea", "steph", "steph2", "steph3", "f2", "f5", "Gene", "Gene2", "iven", "iven2",
        "iven3", "Andy", "AnxiousAndy", "Lee", "david", "m3",
    ),
}  # fmt: skip

DRAWN: dict[str, tuple[str, ...]] = {"train": tuple(drawn_speakers()), "valid": (), "test": ()}

FLITE: dict[str, tuple[str, ...]] = {"train": ("awb", "kal", "kal16", "slt"), "valid": (), "test": ("rms",)}
