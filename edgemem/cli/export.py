"""`edgemem export`: a model of the zoo, or one of Hugging Face, to ONNX + contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemem.cli.options import json_option, parsed_settings, print_json, settings_option, stderr
from edgemem.text import counted

if TYPE_CHECKING:
    from edgemem.contract import Contract


@click.command("export")
@click.argument("model", required=False)
@click.option(
    "--hf", type=click.Path(path_type=Path), help="A Hugging Face folder, or its config.json: random weights."
)
@click.option("--task", help="What the Hugging Face model is for.  [default: text-generation]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The ONNX file to write.")
@click.option(
    "--chunk", type=click.IntRange(1), default=1, show_default=True, help="Units (frames, segments) per step."
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Streams per step.")
@click.option("--seed", type=click.IntRange(0), help="Random weights from this seed, even where trained ones ship.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights: .safetensors, or .pth of tensors alone.")
@settings_option
@json_option
def command(
    model: str | None,
    hf: Path | None,
    task: str | None,
    output: Path,
    chunk: int,
    batch: int,
    seed: int | None,
    checkpoint: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export MODEL (a name from `edgemem models`), or a model of Hugging Face, and prove the file against torch.

    \b
    edgemem export kws-lmuformer -o k.onnx
    edgemem export rwkv4 --set layers=2 --set width=64 --set vocab=64 -o r.onnx
    edgemem export rwkv4 --checkpoint RWKV-4-169M.safetensors -o rwkv.onnx --chunk 16
    edgemem export --hf models/rwkv-169m -o rwkv.onnx

    A Hugging Face folder is on this machine and has its weights as safetensors; nothing is fetched, and no code of the
    folder runs. Its tokenizer.json travels in the file.
    """
    from edgemem.errors import UsageError

    if (model is None) == (hf is None):
        raise UsageError("say what to export: either MODEL, a name from `edgemem models`, or --hf FOLDER")
    if task is not None and hf is None:
        raise UsageError("--task is of a Hugging Face model; give its folder by --hf")
    if checkpoint is not None and (seed is not None or hf is not None):
        other = "--seed" if seed is not None else "--hf"
        raise UsageError(f"{other} and --checkpoint both say where the weights come from; give one of them")
    given = parsed_settings(settings)
    with stderr().status(f"exporting {model or hf}"):
        if hf is not None:
            contract = hugging_face(hf, output, given, task, seed=seed, chunk=chunk, batch=batch)
        else:
            contract = zoo(str(model), output, given, seed=seed, checkpoint=checkpoint, chunk=chunk, batch=batch)
    proof = contract.parity[-1]
    if as_json:
        print_json({"file": str(output), "bytes": output.stat().st_size, **contract.model_dump(mode="json")})
        return
    stderr().print(
        f"wrote {output} ({output.stat().st_size:,} bytes, {counted(len(contract.states), 'state')}); "
        f"equal to {proof.reference} over {proof.steps} steps: "
        f"largest error {proof.max_abs_error:.1e} of {proof.tolerance:.1e} allowed",
        highlight=False,
        soft_wrap=True,
    )


def zoo(name: str, output: Path, settings: dict[str, object], **options: Any) -> Contract:
    """Export a model by name; says where its weights are random although trained ones ship."""
    from edgemem.export import export_model
    from edgemem.models import spec

    contract = export_model(name, output, settings, **options)
    if contract.model.source.kind == "seed" and options["seed"] is None and spec(name).trained():
        warn(
            f"{name} ships trained, but not at these settings: the weights of {output} are random, seed 0; "
            "leave out --set, or give weights by --checkpoint"
        )
    return contract


def hugging_face(origin: Path, output: Path, settings: dict[str, object], task: str | None, **options: Any) -> Contract:
    """Export a Hugging Face model; says what the file will not have."""
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"  # read when its packages are imported, which comes now
    from edgemem.export.hf import export_hf

    if task is not None:
        options["task"] = task
    contract = export_hf(origin, output, settings, **options)
    if contract.model.source.kind == "seed" and options["seed"] is None:
        warn(f"{origin} has no weights: those of {output} are random, seed 0")
    if contract.inputs[0].encoding is None:
        warn(f"{origin} has no tokenizer.json: {output} takes and gives numbers of tokens, not text")
    return contract


def warn(text: str) -> None:
    """One line on stderr."""
    stderr().print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)
