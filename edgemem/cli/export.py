"""`edgemem export`: a model of the zoo to ONNX + contract."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.cli.options import json_option, parsed_settings, print_json, settings_option, stderr


@click.command("export")
@click.argument("model")
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
    model: str,
    output: Path,
    chunk: int,
    batch: int,
    seed: int | None,
    checkpoint: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export MODEL (a name from `edgemem models`) and prove the file against torch.

    \b
    edgemem export kws-lmuformer -o k.onnx
    edgemem export rwkv4 --set layers=2 --set width=64 --set vocab=64 -o r.onnx
    edgemem export rwkv4 --checkpoint RWKV-4-169M.safetensors -o rwkv.onnx --chunk 16
    """
    from edgemem.errors import UsageError
    from edgemem.export import export_model
    from edgemem.models import spec

    if seed is not None and checkpoint is not None:
        raise UsageError("--seed and --checkpoint both say where the weights come from; give one of them")
    with stderr().status(f"exporting {model}"):
        contract = export_model(
            model, output, parsed_settings(settings), seed=seed, checkpoint=checkpoint, chunk=chunk, batch=batch
        )
    random = contract.model.source.kind == "seed"
    if random and seed is None and spec(model).trained():
        stderr().print(
            f"warning: {model} ships trained, but not at these settings: the weights of {output} are random, seed 0; "
            "leave out --set, or give weights by --checkpoint",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    proof = contract.parity[-1]
    if as_json:
        print_json({"file": str(output), "bytes": output.stat().st_size, **contract.model_dump(mode="json")})
        return
    stderr().print(
        f"wrote {output} ({output.stat().st_size:,} bytes, {len(contract.states)} states); "
        f"equal to {proof.reference} over {proof.steps} steps: "
        f"largest error {proof.max_abs_error:.1e} of {proof.tolerance:.1e} allowed",
        highlight=False,
        soft_wrap=True,
    )
