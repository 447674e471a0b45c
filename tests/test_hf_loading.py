"""Folders from outside: what is read, what is refused and why; and text by the tokenizer that travels along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import edgemem
from edgemem import onnxfile, runner
from edgemem.errors import CheckpointError, ConfigError, ContractError, EdgememError, InputError
from edgemem.export.hf import folder as folder_files
from edgemem.export.hf import loading
from edgemem.export.hf.exporter import export_hf
from edgemem.export.hf.rebuild import module_of
from edgemem.modelfile import open_model
from edgemem.tokenizer import TokenDecoder, Tokenizer
from edgemem.weights import stored_tensors
from tests import hf_models as hf

TINY = Path(__file__).parent / "data" / "tiny-rwkv"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a file."""
    path = tmp_path_factory.mktemp("hf") / "h.onnx"
    export_hf(TINY, path)
    return path


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = {f"tensor{i}": name for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))

    return spoil


def config(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def header(shape: str) -> Callable[[Path], None]:
    """Weights whose header claims a shape."""

    def spoil(folder: Path) -> None:
        facts = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 4]}}}}'.encode()
        (folder / "model.safetensors").write_bytes(len(facts).to_bytes(8, "little") + facts + bytes(4))

    return spoil


def damaged(folder: Path) -> None:
    """One NaN among the weights."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["rwkv.blocks.1.attention.key.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


SPOILED: list[tuple[Callable[[Path], None], type[EdgememError], str]] = [
    (without_weights, CheckpointError, r"pytorch_model.bin, a format that can run code .*safe_serialization"),
    (
        index("../tiny/model.safetensors"),
        CheckpointError,
        r"names of .safetensors files beside it were wanted",
    ),
    (index("pytorch_model.bin"), CheckpointError, "pytorch_model.bin came"),
    (index("model-2.safetensors"), CheckpointError, r"lacks model-2.safetensors, which"),
    (index(), CheckpointError, "none came"),
    (index("a" * 5000 + ".safetensors"), CheckpointError, "files beside it were wanted, aaaa"),
    (index("a\0.safetensors"), CheckpointError, "files beside it were wanted"),
    (header("[Infinity]"), CheckpointError, r"no whole safetensors file \(the shape \[inf\]\)"),
    (header("[-1, -4]"), CheckpointError, r"the shape \[-1, -4\]"),
    (header('"12"'), CheckpointError, "the shape 12"),
    (header("[1]"), CheckpointError, "lacks rwkv"),
    (damaged, CheckpointError, r"rwkv.blocks.1.attention.key.weight holds NaN"),
    (config(num_labels=10**9), ConfigError, "num_labels is 1000000000, 4096 are the limit"),
    (config(num_hidden_layers=10**9), ConfigError, "num_hidden_layers is 1000000000, 4096 are the limit"),
    (text("model.safetensors", "junk"), CheckpointError, "model.safetensors is no whole safetensors file"),
    (config(num_hidden_layers=3), CheckpointError, r"lacks rwkv.blocks.2"),
    (config(num_hidden_layers=1), CheckpointError, r"holds rwkv.blocks.1.*, which the model has not"),
    (
        config(hidden_size=40),
        CheckpointError,
        r"wrong shape for .*40\] was wanted, .*48\] came; its config.json is of other",
    ),
    (config(hidden_size=1 << 20), CheckpointError, r"wrong shape for .*1048576\] was wanted"),  # terabytes
    (config(hidden_size=-1), ConfigError, r"config.json: hidden_size is '-1', a whole number above 0 was wanted; corr"),
    (config(vocab_size="big"), ConfigError, r"config.json: vocab_size is 'big', a whole number above 0 was wanted"),
    (
        cut_short,
        CheckpointError,
        r"model.safetensors is no whole .* bytes were announced, .* are there\); copy it",
    ),
    (text("adapter_config.json", "{}"), CheckpointError, "adapts another model.*merge_and_unload"),
    (config(model_type="gpt_bigcode"), ConfigError, "model_type 'gpt_bigcode' has no streaming form here"),
    (config(model_type=["rwkv"]), ConfigError, "has no streaming form here"),
    (config(quantization_config={"quant_method": "bnb"}), ConfigError, "quantized by another tool"),
    (text("config.json", "{"), ConfigError, "is not JSON"),
    (text("config.json", "[]"), ConfigError, "must hold a JSON object, it holds list"),
    (text("tokenizer.json", '{"model": 1}'), ConfigError, "tokenizer.json is not one that tokenizers reads"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), SPOILED)
def test_a_spoiled_folder_is_refused_with_the_reason(
    spoil: Callable[[Path], None], error: type[EdgememError], message: str, folder: Path, tmp_path: Path
) -> None:
    spoil(folder)
    with pytest.raises(error, match=message):
        export_hf(folder, tmp_path / "h.onnx")
    assert not (tmp_path / "h.onnx").exists()


@pytest.mark.parametrize(("name", "remedy"), [("m.onnx", "`edgemem adopt` takes ONNX"), ("m.safetensors", "give ")])
def test_another_file_in_the_place_of_a_configuration(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xf4\x08")
    with pytest.raises(ConfigError, match=rf"{name} is no config.json: --hf takes a folder .*{remedy}"):
        folder_files.opened(tmp_path / name)


def test_a_folder_is_refused_before_anything_slow_is_imported(folder: Path) -> None:
    without_weights(folder)
    code = (
        "import sys\nfrom edgemem.errors import CheckpointError\nfrom edgemem.export.hf import export_hf\n"
        "try:\n    export_hf(sys.argv[1], sys.argv[2])\nexcept CheckpointError:\n"
        "    print(sorted({'torch', 'transformers', 'optimum', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder, folder.parent / "h.onnx"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_code_that_a_folder_points_to_is_never_looked_at(folder: Path) -> None:
    config(auto_map={"AutoModelForCausalLM": "evil.Model"}, attn_implementation="hub/kernel")(folder)
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    loaded = loading.load(folder)
    assert type(loaded.model).__module__ == "transformers.models.rwkv.modeling_rwkv"
    assert loaded.model.config._attn_implementation == "eager"


def test_a_configuration_takes_no_place_of_its_class(folder: Path) -> None:
    """Fields that are called as a method or a table of the class are none of a model's."""
    config(to_diff_dict=1, attribute_map={"vocab_size": "nothing"}, __class__="str", get_text_config=[])(folder)
    loaded = loading.load(folder)
    assert loading.fields_of(loaded.model.config)["model_type"] == "rwkv"
    assert loaded.model.config.vocab_size == loading.load(TINY).model.config.vocab_size


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**hf.fields("llama"), "hidden_size": 1 << 18}, "has [0-9,]{15} parameters .*made up to 2,147,483,648"),
        ({**hf.fields("gpt2"), "n_positions": 1 << 17}, "would compute [0-9,]{14} bytes of tables"),
    ],
)
def test_configurations_alone_that_no_memory_holds(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=message):
        loading.load(tmp_path / "config.json")


def test_fields_that_only_a_stream_reads_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**hf.fields("recurrent_gemma"), "attention_window_size": [1]}))
    with pytest.raises(ConfigError, match="recurrent_gemma cannot stream by this configuration: '>' not supported"):
        export_hf(tmp_path / "config.json", tmp_path / "h.onnx")


def test_weights_are_those_of_from_pretrained_in_one_file_or_several(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    first = loading.load(folder)
    wanted.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    parts = loading.load(folder)
    assert (folder / folder_files.INDEX).is_file() and len(folder_files.weight_files(folder)) > 1
    for model in (first.model, parts.model):
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
    assert first.source["sha256"] != parts.source["sha256"]


def test_a_configuration_alone_gives_weights_of_the_seed() -> None:
    one, same, other = (loading.load(TINY / "config.json", seed=seed) for seed in (1, 1, 2))
    assert one.source == {"kind": "seed", "seed": 1} and one.tokenizer is not None
    weights = [loaded.model.head.weight for loaded in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(ConfigError, match=r"nowhere is no folder with a config.json .* never fetched"):
        loading.load(Path("nowhere"))


def test_infinite_numbers_of_a_configuration_pass_through_the_contract() -> None:
    fields = {"limit": [0.0, float("inf")], "inner": {"low": -float("inf")}, "name": "x"}
    as_text = json.loads(json.dumps(loading.finite(fields), allow_nan=False))
    assert loading.finite(as_text, back=True) == fields


def test_a_rebuilt_model_needs_every_weight(exported: Path) -> None:
    model = open_model(exported)
    tensors = stored_tensors(model)
    assert "model.rwkv.blocks.1.attention.key.weight" in tensors
    missing = {name: value for name, value in tensors.items() if "blocks.1.attention.key" not in name}
    with pytest.raises(ContractError, match=r"lacks model.rwkv.blocks.1.attention.key.weight"):
        module_of(model.contract, missing, "h.onnx")
    wrong = {**tensors, "model.head.weight": np.zeros((3, 3), np.float32)}
    with pytest.raises(ContractError, match=r"model.head.weight: h.onnx has \[3, 3\], torch \[512, 48\]"):
        module_of(model.contract, wrong, "h.onnx")


def test_a_rebuilt_model_is_compared_before_it_is_built(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contract of terabytes takes none of them."""
    model = open_model(exported)
    fields = {**model.contract.model.config["huggingface"], "hidden_size": 1 << 20, "attention_hidden_size": 1 << 20}
    facts = model.contract.model.model_copy(update={"config": {**model.contract.model.config, "huggingface": fields}})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(ContractError, match=r"contract field model.tensors.*1048576"):
        module_of(model.contract.model_copy(update={"model": facts}), stored_tensors(model), "h.onnx")


def test_text_is_that_of_the_tokenizer(exported: Path) -> None:
    import tokenizers

    own = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    prompt = "def größe(x):\n    return x  # 😀"
    stream = edgemem.load(exported).stream()
    ids = runner.tokens(stream, prompt.encode())
    assert ids.tolist() == own.encode(prompt).ids and ids[0] == 0
    stream.push(ids[:3])
    assert runner.tokens(stream, prompt.encode())[0] != 0  # no second beginning
    decoder = runner.decoder(stream)
    pieces = [decoder.push(int(token)) for token in ids]
    assert "".join(pieces) + decoder.flush() == prompt
    assert "\ufffd" not in "".join(pieces) and "" in pieces  # halves of a character wait
    with pytest.raises(InputError, match="UTF-8 was wanted, byte 1 is not"):
        runner.tokens(stream, b"a\xff")
    assert runner.end_tokens(stream) == {0}


def test_bytes_that_are_no_text_do_not_wait_for_ever() -> None:
    tokenizer = Tokenizer((TINY / "tokenizer.json").read_text())
    broken = [i for i in range(512) if tokenizer.decode([i]) == "\ufffd"][:1] * 40
    decoder = TokenDecoder(tokenizer)
    said = [decoder.push(token) for token in broken]
    assert any(said) and ("".join(said) + decoder.flush()).count("\ufffd") == 40


def edit(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def test_a_tokenizer_that_was_exchanged_is_refused(exported: Path, tmp_path: Path) -> None:
    def altered(model: Any) -> None:
        entry = next(p for p in model.metadata_props if p.key == "edgemem.tokenizer")
        entry.value = entry.value.replace("<end>", "<fin>")

    def lost(model: Any) -> None:
        del model.metadata_props[[p.key for p in model.metadata_props].index("edgemem.tokenizer")]

    for change, message in ((altered, "is not the one that was exported"), (lost, "has lost its tokenizer.json")):
        file = edit(exported, tmp_path / "m.onnx", change)
        stream = edgemem.load(file).stream()
        with pytest.raises(ContractError, match=message):
            runner.tokens(stream, b"a")
        stream.push(np.array([1, 2]))  # numbers of tokens need none


def test_the_commands_write_text(exported: Path) -> None:
    assert "edgemem.tokenizer" in onnxfile.read(exported).metadata
    command = [sys.executable, "-m", "edgemem", "run", exported, "--text", "def ", "--generate", "12"]
    done = subprocess.run([*command, "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 12 or rows[-1]["token"] == 0
    said = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    assert said.startswith("def " + "".join(row["text"] for row in rows))
    costs = subprocess.run([*command[:7], "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert all(json.loads(line)["bits"] > 0 for line in costs.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either MODEL, a name from `edgemem models`, or --hf FOLDER"),
        (("rwkv4", "--hf", TINY), "either MODEL, a name from `edgemem models`, or --hf FOLDER"),
        (("rwkv4", "--task", "text-generation"), "--task is of a Hugging Face model"),
        (("--hf", TINY, "--checkpoint", "x.safetensors"), "--hf and --checkpoint both say"),
    ],
)
def test_options_that_contradict_are_refused(arguments: tuple[object, ...], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgemem", "export", *map(str, arguments), "-o", str(tmp_path / "h.onnx")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "h.onnx").exists()


def test_settings_that_an_architecture_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rwkv has no setting 'window'; it has none"):
        export_hf(TINY, tmp_path / "h.onnx", {"window": 4})


def test_the_small_models_of_the_tests_are_saved_as_folders(tmp_path: Path) -> None:
    loaded = loading.load(hf.saved("rwkv", tmp_path / "m", tie_word_embeddings=False))
    assert loaded.tokenizer is None and loaded.source["kind"] == "checkpoint"
