"""The keyword spotter's part of the results page."""

from __future__ import annotations

from typing import Any

from bench.claims import Claim, Section, Table, ratio
from bench.tasks.kws import card

LEVELS = {"clean": "clean", "10db": "noise 10 dB below", "0db": "noise as loud"}
PAPER = "Liu, Datta, Li & Beerel 2024, LMUFormer"
FEWER_PARAMETERS, FEWER_OPERATIONS, SHORTER = 53.0, 65.0, 0.3203  # as the paper has them
BASELINE = "kws-transformer"
NEAR = 0.01  # accuracy within which two models are called alike


def section(result: dict[str, Any]) -> Section:
    """The shipped spotter on voices that no training heard, and models trained alike."""
    tables = [shipped(result)]
    tables.append(Table("and words that are no keywords, clean", ("words", "taken for unknown"), rejected(result)))
    if "tiny" in result:
        tables.append(Table("The one for microcontrollers", COMPARED_HEADS, compared({"kws-tiny": result["tiny"]})))
    if result["compared"]:
        tables.append(
            Table("Models trained alike: the same data and recipe", COMPARED_HEADS, compared(result["compared"]))
        )
    return Section(
        title="Keyword spotting",
        text=(
            f"Ten words, `unknown` and `silence`, synthesised speech, {len(result['test_voices'])} held-out voices, "
            f"{result['clips_per_level']} clips of one second at every level, decided from the streamed posteriors. "
            f"`{result['model']}` has {result['parameters']:,} parameters and needs "
            f"{result['macs_per_second_of_audio'] / 1e6:.1f} million multiply-accumulates per second of audio; it "
            f"was trained on {result['training']['words']:,} words by {result['training']['voices']} voices for "
            f"{result['training']['recipe']['steps']:,} steps.{same_data(result)}"
        ),
        claims=claims(result),
        tables=tables,
        pictures=("kws_confusion.png", *(["kws_models.png"] if result["compared"] else [])),
    )


def shipped(result: dict[str, Any]) -> Table:
    """Accuracy of the shipped spotter, at every noise and on the recorded man among its voices."""
    rows = [[said, f"{100 * result['accuracy'][level]:.1f} %"] for level, said in LEVELS.items()]
    person = result["accuracy_by_voice"]["clean"].get(card.PERSON)
    if person is not None:
        rows.append(["clean, the recorded man", f"{100 * person:.1f} %"])
    return Table("The shipped spotter: accuracy on clips", ("", "accuracy"), rows)


def same_data(result: dict[str, Any]) -> str:
    """A sentence on the training of the models that are compared."""
    if not result["compared"]:
        return ""
    trainings = [found["training"] for found in result["compared"].values()]
    minutes = [training["processor_minutes"] for training in trainings]
    rates = [f"`{name}` {found['training']['recipe']['rate']:g}" for name, found in result["compared"].items()]
    return (
        f" The models that are compared heard {trainings[0]['words']:,} words by {trainings[0]['voices']} voices, each "
        f"for {min(minutes):.1f} to {max(minutes):.1f} minutes of one core (see the table), with one "
        "recipe and the peak learning rate that served each best on the validation voices in a sixth of the steps: "
        f"{', '.join(rates)}."
    )


def rejected(result: dict[str, Any]) -> list[list[str]]:
    """A row per kind of word."""
    return [[kind, f"{100 * found['as_unknown']:.0f} %"] for kind, found in result["rejected"].items()]


COMPARED_HEADS = (
    "model", "parameters", "million MACs/s", "state bytes", *LEVELS.values(), "word heard for -1 %",
    "processor minutes", "steps",
)  # fmt: skip


def compared(models: dict[str, Any]) -> list[list[str]]:
    """A row per model."""
    return [
        [
            f"`{name}`",
            f"{found['parameters']:,}",
            f"{found['macs_per_second_of_audio'] / 1e6:.1f}",
            f"{found['state_bytes']:,}",
            *(f"{100 * found['accuracy'][level]:.1f} %" for level in LEVELS),
            f"{100 * found['early']['enough']:.0f} %",
            f"{found['training']['processor_minutes']:.1f}",
            f"{found['training']['recipe']['steps']:,}",
        ]
        for name, found in models.items()
    ]


def claims(result: dict[str, Any]) -> list[Claim]:
    """The paper's headline, of the models that are there."""
    rows = [early_claim(result)]
    if {BASELINE, result["model"]} <= set(result["compared"]):
        rows.insert(0, size_claim(result["compared"][result["model"]], result["compared"][BASELINE]))
    if "kws-spiking-lmuformer" in result["compared"]:
        rows.append(spiking_claim(result["compared"]))
    return rows


def size_claim(ours: dict[str, Any], theirs: dict[str, Any]) -> Claim:
    """Parameters and operations beside the Transformer's."""
    fewer = theirs["parameters"] / ours["parameters"]
    operations = theirs["macs_per_second_of_audio"] / ours["macs_per_second_of_audio"]
    gap = 100 * (ours["accuracy"]["clean"] - theirs["accuracy"]["clean"])
    minutes = [found["training"]["processor_minutes"] for found in (ours, theirs)]
    return Claim(
        model="LMUFormer",
        paper=PAPER,
        claim=f"{FEWER_PARAMETERS:.0f} x fewer parameters and {FEWER_OPERATIONS:.0f} x fewer FLOPs than the best "
        "Transformer on Speech Commands, at comparable accuracy",
        setup=f"beside a streaming spectrogram Transformer of {theirs['parameters']:,} parameters, trained alike for "
        f"{minutes[0]:.1f} and {minutes[1]:.1f} minutes of one core",
        measured=f"{fewer:.1f} x fewer parameters, {operations:.1f} x fewer multiply-accumulates, accuracy "
        f"{abs(gap):.1f} points {'higher' if gap >= 0 else 'lower'}",
        verdict=f"parameters {ratio(fewer, FEWER_PARAMETERS)}, operations {ratio(operations, FEWER_OPERATIONS)}: the "
        "paper's Transformer has 87 million parameters, pretrained elsewhere; ours is as small as its task",
    )


def early_claim(result: dict[str, Any]) -> Claim:
    """How much of a clip, and of a word, can be left out."""
    early, cut = result["early"], result["cut"]
    centred, anywhere = cut["centred"]["shortened"], cut["anywhere"]["shortened"]
    verdict = ratio(centred, SHORTER)
    return Claim(
        model="LMUFormer",
        paper=PAPER,
        claim=f"{100 * SHORTER:.2f} % shorter sequences at an inconsequential loss of accuracy",
        setup="the shipped spotter on clean clips of one second cut at their end, as in the paper: words in the "
        "middle, about as Speech Commands has them, and words anywhere; and decisions before the end of a word",
        measured=f"clips {100 * centred:.0f} % shorter for a loss of at most one point, {100 * anywhere:.0f} % where "
        "words lie anywhere; from a word's start on, what has to be heard is "
        f"{100 * early['enough']:.0f} % of its length",
        verdict=verdict
        if centred >= SHORTER
        else f"{verdict}: silence after a word can go, but not its end, likely because the words that "
        "have to be told from a keyword often differ only there",
    )


def spiking_claim(models: dict[str, dict[str, Any]]) -> Claim:
    """What spikes cost in accuracy."""
    spiking, plain = models["kws-spiking-lmuformer"], models.get("kws-lmuformer", {})
    gap = 100 * (plain["accuracy"]["clean"] - spiking["accuracy"]["clean"]) if plain else float("nan")
    return Claim(
        model="spiking LMUFormer",
        paper=PAPER,
        claim="comparable accuracy with spikes alone between the layers",
        setup="leaky integrate-and-fire neurons in place of all activations, trained for the same processor time",
        measured=f"{100 * spiking['accuracy']['clean']:.1f} % clean, {gap:.1f} points below the plain form, "
        f"{spiking['spikes_per_neuron_and_row']:.2f} spikes per neuron and row",
        verdict="comparable"
        if gap <= 100 * NEAR
        else f"{gap:.1f} points short: steps of spikes are slower to train, so the same time is fewer of them",
        headline=False,
    )
