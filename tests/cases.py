"""Random settings of every model of the zoo, all of them small, and the module that defines it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Settings = st.SearchStrategy[dict[str, Any]]


def sizes(*parts: Settings, **fields: st.SearchStrategy[Any]) -> Settings:
    """Settings from independent fields, and from `parts` that draw fields together."""
    return st.tuples(*parts, st.fixed_dictionaries(fields)).map(
        lambda drawn: {k: v for d in drawn for k, v in d.items()}
    )


few, small = st.integers(1, 2), st.integers(3, 7)
PROBED = st.sampled_from(["recall", "copy", "narma", "digits"])
windows = st.floats(2.0, 30.0)

FOLDS = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(3, 4)).map(
    lambda drawn: {"fold": drawn[0], "heads": drawn[1], "width": drawn[0] * drawn[1] * drawn[2], "ffn": drawn[0] * 4}
)
FEEDS = st.sampled_from([0, 1])  # folded as attention, not folded
HEADS = st.tuples(st.integers(1, 3), st.integers(3, 5)).map(  # a layer norm of 2 numbers is two signs
    lambda drawn: {"heads": drawn[0], "width": drawn[0] * drawn[1]}
)
MEMORIES: dict[str, st.SearchStrategy[Any]] = {
    "layers": few,
    "slots": st.integers(1, 4),
    "segment": st.integers(2, 5),
    "ffn": st.sampled_from([0, 5]),
    "temperature": st.sampled_from([0.25, 1.5]),
}
WINDOWS: dict[str, st.SearchStrategy[Any]] = {
    "layers": few,
    "segment": st.integers(2, 4),
    "left": st.integers(1, 6),
    "look_ahead": st.integers(0, 5),
}

SPOTTERS: dict[str, st.SearchStrategy[Any]] = {
    "features": st.sampled_from([4, 6]),
    "forget": st.sampled_from([0.8, 1.0]),
}
LMUFORMERS: dict[str, st.SearchStrategy[Any]] = {
    "layers": few,
    "order": small,
    "channels": st.integers(1, 3),
    "window": windows,
    "convolutions": few,
    "kernel": st.integers(1, 4),
    "expand": few,
}

CASES: dict[str, tuple[str, Settings]] = {
    "rwkv4": ("rwkv4", sizes(layers=few, width=small, vocab=small, ffn=st.sampled_from([0, 5]), tied=st.booleans())),
    "lm-rwkv4": ("rwkv4", sizes(layers=few, width=small, vocab=small)),
    "lmu": (
        "lmu",
        st.one_of(
            sizes(layers=few, width=small, order=small, window=windows, features=small, outputs=small),
            sizes(
                layers=few,
                width=small,
                order=small,
                window=windows,
                features=small,
                outputs=small,
                parallel=st.just(True),
                channels=st.integers(1, 3),
            ),
        ),
    ),
    "kws-lmuformer": ("kws_lmuformer", sizes(**SPOTTERS, **LMUFORMERS, width=small)),
    "kws-tiny": ("kws_lmuformer", sizes(**SPOTTERS, **LMUFORMERS, width=small)),
    "kws-spiking-lmuformer": (
        "kws_spiking",
        sizes(**SPOTTERS, **LMUFORMERS, width=small, decay=st.sampled_from([0.0, 0.5])),
    ),
    "kws-gru": ("kws_gru", sizes(**SPOTTERS, layers=few, width=small)),
    "kws-transformer": (
        "kws_transformer",
        sizes(HEADS, **SPOTTERS, layers=few, ffn=small, segment=st.integers(2, 4), left=st.integers(1, 6)),
    ),
    "memformer": ("memformer", sizes(HEADS, **MEMORIES, features=small, vocab=st.sampled_from([0, 5]))),
    "memformer-seq2seq": ("memformer", sizes(HEADS, **MEMORIES, vocab=small)),
    "lm-memformer": ("memformer", sizes(HEADS, **MEMORIES, vocab=small)),
    "lm-transformer": (
        "transformer",
        sizes(HEADS, layers=few, context=st.integers(1, 9), ffn=st.sampled_from([0, 5]), vocab=small),
    ),
    "lm-transformer-xl": (
        "transformer_xl",
        sizes(
            HEADS,
            layers=few,
            memory=st.integers(1, 7),
            segment=st.integers(2, 5),
            ffn=st.sampled_from([0, 5]),
            vocab=small,
        ),
    ),
    "folding": ("folding", sizes(FOLDS, **WINDOWS, ffn_fold=FEEDS, features=small, vocab=st.sampled_from([0, 5]))),
    "asr-folding": ("folding", sizes(FOLDS, **WINDOWS, ffn_fold=FEEDS, features=st.just(12), vocab=small)),
    "probe-rwkv4": ("probes", sizes(probe=PROBED, layers=few, width=small, ffn=st.sampled_from([0, 5]))),
    "probe-lmu": (
        "probes",
        sizes(
            probe=PROBED,
            layers=few,
            width=small,
            order=small,
            window=windows | st.just(0.0),
            channels=st.integers(1, 3),
        ),
    ),
    "probe-gru": ("probes", sizes(probe=PROBED, layers=few, width=small, ffn=st.sampled_from([0, 5]))),
    "probe-memformer": ("probes", sizes(HEADS, **MEMORIES, probe=PROBED)),
    "probe-folding": ("probes", sizes(FOLDS, probe=PROBED, layers=few, left=st.integers(1, 6))),
}
