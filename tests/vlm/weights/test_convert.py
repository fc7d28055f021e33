"""transformers' Mllama in and out: every tensor, setting and file, or nothing at all."""

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, MllamaForConditionalGeneration, MllamaProcessor

import vlm
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.model import VisionLanguageModel, tensor_shapes
from vlm.weights.convert import from_hf, to_hf
from vlm.weights.folder import (
    COMPONENTS,
    FORMAT,
    FolderConfig,
    read_folder_config,
    read_provenance,
    save_folder,
)
from vlm.weights.mllama_names import mllama_name, our_name
from vlm.weights.tensors import stored_tensors

MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "How many red circles?"}],
    }
]
# How transformers writes files where a test asks it to.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def content(path: Path) -> dict[str, Any]:
    """A JSON file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def change(path: Path, **update: Any) -> None:
    path.write_text(json.dumps(content(path) | update))


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_byte_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape, name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


def save_ours(folder: Path, config: VLMConfig, processor: Processor) -> Path:
    """A model folder of ours with random weights."""
    torch.manual_seed(0)
    model = VisionLanguageModel(config, processor.tokenizer.image_id)
    described = FolderConfig(format=FORMAT, stage="finetune", components=COMPONENTS, model=config)
    modules = {name: model.get_submodule(name) for name in COMPONENTS}
    save_folder(folder, described, modules, processor, {"stage": "finetune", "seed": 5})
    return folder


def assert_nothing_written(out: Path) -> None:
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if ".writing" in path.name] == []


@pytest.fixture(scope="session")
def reshard() -> Callable[[Path, str], None]:
    """`reshard(folder, "30KB")`: write the weights again, as several files and an index."""

    def write(folder: Path, max_shard_size: str) -> None:
        network = MllamaForConditionalGeneration.from_pretrained(folder, dtype="auto")
        (folder / "model.safetensors").unlink()
        network.save_pretrained(folder, max_shard_size=max_shard_size)

    return write


@pytest.fixture
def ours(mllama_source: Path, tmp_path: Path) -> Path:
    """The folder that from-hf makes of the small Mllama."""
    from_hf(mllama_source, tmp_path / "ours", {"folder": "mllama"})
    return tmp_path / "ours"


def test_in_and_out_again_gives_byte_equal_tensors(
    ours: Path, mllama_source: Path, tmp_path: Path
) -> None:
    to_hf(ours, tmp_path / "back")
    assert_byte_equal(tensors(tmp_path / "back"), tensors(mllama_source))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_dtype_is_kept_also_where_they_are_mixed(
    mllama_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = mllama_folder / "model.safetensors"
    source = {
        name: tensor if "gate" in name else tensor.to(dtype)
        for name, tensor in load_file(path).items()
    }
    save_file(source, path, metadata={"format": "pt"})
    from_hf(mllama_folder, tmp_path / "ours", {})
    to_hf(tmp_path / "ours", tmp_path / "back")
    assert_byte_equal(tensors(tmp_path / "back"), source)
    assert content(tmp_path / "back" / "config.json")["dtype"] == str(dtype).removeprefix("torch.")


def test_shards_stay_shards(
    mllama_folder: Path, tmp_path: Path, reshard: Callable[[Path, str], None]
) -> None:
    whole = tensors(mllama_folder)
    reshard(mllama_folder, "30KB")
    num_shards = len(list(mllama_folder.glob("*.safetensors")))
    from_hf(mllama_folder, tmp_path / "ours", {})
    to_hf(tmp_path / "ours", tmp_path / "back")
    for folder in (tmp_path / "ours", tmp_path / "back"):
        index = content(folder / "model.safetensors.index.json")
        assert len(set(index["weight_map"].values())) == num_shards > 3
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
        for name, file in index["weight_map"].items():
            with safe_open(folder / file, framework="pt") as opened:
                assert name in opened.keys()
    assert_byte_equal(tensors(tmp_path / "back"), whole)


def test_names_of_the_model_in_memory_are_read_too(mllama_folder: Path, tmp_path: Path) -> None:
    path = mllama_folder / "model.safetensors"
    source = load_file(path)
    renamed = {
        re.sub(r"^(vision_model|multi_modal_projector)", r"model.\1", name)
        .replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head", "lm_head"): tensor
        for name, tensor in source.items()
    }
    save_file(renamed, path)
    from_hf(mllama_folder, tmp_path / "ours", {})
    assert_byte_equal(
        tensors(tmp_path / "ours"), {str(our_name(name)): t for name, t in source.items()}
    )


def test_transformers_loads_what_we_write(ours: Path, tmp_path: Path) -> None:
    to_hf(ours, tmp_path / "back")
    network, info = MllamaForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert {name: list(value) for name, value in info.items() if value} == {}
    ends = network.generation_config.eos_token_id
    assert ends == content(ours / "generation_config.json")["eos_token_id"] and len(ends) == 2


def test_the_config_says_the_same_after_the_round_trip(
    ours: Path, mllama_source: Path, tmp_path: Path
) -> None:
    to_hf(ours, tmp_path / "back")
    before, after = (
        MllamaForConditionalGeneration.config_class.from_pretrained(folder).to_dict()
        for folder in (mllama_source, tmp_path / "back")
    )
    for section in ("vision_config", "text_config"):
        # Two ways to say when an answer ends: ours lists all that we end at.
        before[section].pop("eos_token_id", None)
        after[section].pop("eos_token_id", None)
    assert after.pop("transformers_version") and before.pop("transformers_version")
    assert {k: v for k, v in after.items() if v != before.get(k)} == {}


@pytest.mark.parametrize("reader", [MllamaProcessor, AutoProcessor])
def test_the_processor_written_gives_the_same_ids_and_pixels(
    ours: Path,
    mllama_source: Path,
    tmp_path: Path,
    reader: Any,
    picture: Callable[..., Image.Image],
) -> None:
    to_hf(ours, tmp_path / "back")
    before = MllamaProcessor.from_pretrained(mllama_source)
    after = reader.from_pretrained(tmp_path / "back")
    image = picture(3, 70, 40)
    results = []
    for processor in (before, after):
        text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
        results.append(
            processor(images=image, text=text, add_special_tokens=False, return_tensors="pt")
        )
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
    row = Processor.from_folder(ours, read_folder_config(ours).model.vision).encode(
        MESSAGES, [image], add_generation_prompt=True
    )
    assert row.input_ids.tolist() == results[0]["input_ids"][0].tolist()


def test_a_tied_head_goes_out_as_a_copy(processor: Processor, ours: Path, tmp_path: Path) -> None:
    config = read_folder_config(ours).model
    tied = config.model_copy(
        update={"decoder": config.decoder.model_copy(update={"tie_embeddings": True})}
    )
    save_ours(tmp_path / "tied", tied, processor)
    to_hf(tmp_path / "tied", tmp_path / "back")
    written = tensors(tmp_path / "back")
    head, rows = (
        written["language_model.lm_head.weight"],
        written["language_model.model.embed_tokens.weight"],
    )
    assert len(head) == config.decoder.vocab_size == len(rows) - 8
    assert torch.equal(head, rows[: len(head)])
    _, info = MllamaForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values())


def test_a_folder_without_a_head_is_tied_only_if_it_says_so(
    mllama_folder: Path, tmp_path: Path
) -> None:
    path = mllama_folder / "model.safetensors"
    source = load_file(path)
    del source["language_model.lm_head.weight"]
    save_file(source, path)
    with pytest.raises(UserError, match=r"language_model\.lm_head\.weight is missing"):
        from_hf(mllama_folder, tmp_path / "ours", {})
    text = content(mllama_folder / "config.json")["text_config"]
    change(mllama_folder / "config.json", text_config=text | {"tie_word_embeddings": True})
    from_hf(mllama_folder, tmp_path / "ours", {})
    assert read_folder_config(tmp_path / "ours").model.decoder.tie_embeddings
    to_hf(tmp_path / "ours", tmp_path / "back")
    back = tensors(tmp_path / "back")
    head = back.pop("language_model.lm_head.weight")
    assert_byte_equal(back, source)
    assert torch.equal(head, back["language_model.model.embed_tokens.weight"][: len(head)])


def test_the_new_folder_is_one_of_ours_and_knows_its_origin(
    mllama_source: Path, tmp_path: Path
) -> None:
    origin = {"repository": "meta-llama/x", "commit": "0" * 40}
    from_hf(mllama_source, tmp_path / "ours", origin)
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "provenance.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    provenance = read_provenance(tmp_path / "ours")
    assert provenance["source"] == origin and provenance["stage"] == "from-hf"
    config = read_folder_config(tmp_path / "ours")
    assert (config.format, config.stage) == (FORMAT, "from-hf")
    assert config.model == read_folder_config(mllama_source).model


def test_loading_the_source_and_the_converted_folder_is_the_same(
    ours: Path, mllama_source: Path
) -> None:
    converted, direct = (vlm.load(folder, device="cpu") for folder in (ours, mllama_source))
    assert converted.network.config == direct.network.config
    assert_byte_equal(dict(converted.network.state_dict()), dict(direct.network.state_dict()))
    assert converted.processor.tokenizer.end_ids == direct.processor.tokenizer.end_ids
    ends = content(mllama_source / "generation_config.json")["eos_token_id"]
    assert set(ends) <= set(direct.processor.tokenizer.end_ids)


# transformers lets text before an image see it (huggingface/transformers#39379), so the image opens
# the chat here.
IMAGE_FIRST = """\
{% for message in messages %}{% for part in message['content'] %}\
{{ '<|image|>' if part['type'] == 'image' else part['text'] }}\
{% endfor %}<|eot_id|>{% endfor %}{{ bos_token }}"""


def test_a_folder_answers_as_transformers_does(
    mllama_folder: Path, picture: Callable[..., Image.Image]
) -> None:
    (mllama_folder / "chat_template.jinja").write_text(IMAGE_FIRST)
    ours = vlm.load(mllama_folder, device="cpu", dtype="float32")
    theirs = MllamaForConditionalGeneration.from_pretrained(mllama_folder).eval()
    processor = MllamaProcessor.from_pretrained(mllama_folder)
    # Ours writes no special token but an end; they may write any.
    never = ours.answering.never_written()
    tokenizer = ours.processor.tokenizer
    answers = set()
    for seed, size in enumerate([(28, 28), (56, 28), (28, 84), (56, 56)]):
        image = picture(seed, *size)  # fills its tiles: no resize that could differ
        text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
        inputs = processor(images=image, text=text, add_special_tokens=False, return_tensors="pt")
        written = theirs.generate(
            **inputs, max_new_tokens=24, do_sample=False, suppress_tokens=never
        )[0, inputs["input_ids"].shape[1] :]
        parts = [{"type": "image", "image": image}, MESSAGES[0]["content"][1]]
        reply = ours.chat([{"role": "user", "content": parts}], max_tokens=24)
        words = [token for token in written.tolist() if token not in tokenizer.end_ids]
        assert reply.text == tokenizer.decode(words).strip()
        answers.add(reply.text)
    assert len(answers) == 4  # they look at the pictures


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    found[new] = found.pop(old)
    save_file(found, path)


def drop_tensor(folder: Path) -> None:
    rename(folder, "vision_model.class_embedding", "vision_model.klass_embedding")


def reshape_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    found["multi_modal_projector.bias"] = torch.zeros(31)
    save_file(found, path)


def quantise_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    name = "language_model.model.norm.weight"
    save_file({**found, name: found[name].to(torch.int8)}, path)


def double_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    found = load_file(path)
    save_file({**found, "lm_head.weight": found["language_model.lm_head.weight"] + 1}, path)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def pickle_only(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_model(folder: Path) -> None:
    change(
        folder / "config.json",
        model_type="llava",
        architectures=["LlavaForConditionalGeneration"],
    )


def text_model(folder: Path) -> None:
    change(folder / "config.json", architectures=["MllamaForCausalLM"])


def move_image_token(folder: Path) -> None:
    change(folder / "config.json", image_token_index=3)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_settings(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def wrong_end(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=[2, 4000])


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (
        drop_tensor,
        r"vision_model\.class_embedding is missing \(needed: \[32\]\); "
        r"vision_model\.klass_embedding has no place in the model \(it is \[32\]\)",
    ),
    (reshape_tensor, r"multi_modal_projector\.bias is \[31\], needed: \[32\]"),
    (quantise_tensor, r"language_model\.model\.norm\.weight is of dtype I8, needed: F32, BF16"),
    (double_tensor, r"one tensor twice, as .*lm_head\.weight and .*lm_head\.weight"),
    (truncate, r"model\.safetensors cannot be read as safetensors"),
    (pickle_only, r"pytorch_model\.bin, a pickle, which can run any code"),
    (other_model, r"describes a LlavaForConditionalGeneration .*MllamaForConditionalGeneration"),
    (text_model, r"holds MllamaForCausalLM, needed: MllamaForConditionalGeneration"),
    (move_image_token, r"the model has <\|image\|> at id 3, its tokenizer\.json at 299"),
    (no_settings, r"mllama: there is neither a preprocessor_config\.json nor an image_processor"),
    (no_tokenizer, r"mllama has no tokenizer\.json"),
    (wrong_end, r"eos_token_id 4000 is no id of the tokenizer"),
]


@pytest.mark.parametrize(("fault", "complaint"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_a_folder_that_does_not_fit_is_refused_by_name_and_nothing_is_written(
    mllama_folder: Path, tmp_path: Path, fault: Callable[[Path], None], complaint: str
) -> None:
    fault(mllama_folder)
    with pytest.raises(UserError, match=complaint):
        from_hf(mllama_folder, tmp_path / "out" / "ours", {})
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=complaint):
        vlm.load(mllama_folder, device="cpu")


def test_of_many_extra_tensors_ten_are_named(mllama_folder: Path, tmp_path: Path) -> None:
    path = mllama_folder / "model.safetensors"
    save_file(load_file(path) | {f"adapter.{i:02}": torch.zeros(i + 1) for i in range(12)}, path)
    with pytest.raises(UserError) as caught:
        from_hf(mllama_folder, tmp_path / "ours", {})
    message = str(caught.value)
    assert [f"adapter.{i:02} has no place" in message for i in range(12)] == [True] * 10 + [
        False
    ] * 2
    assert message.endswith("(and 2 more)") and "[10]" in message


def test_a_missing_shard_is_named(
    mllama_folder: Path, tmp_path: Path, reshard: Callable[[Path, str], None]
) -> None:
    reshard(mllama_folder, "30KB")
    shards = sorted(mllama_folder.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"lacks 1 of {len(shards)} .*{shards[1].name}"):
        from_hf(mllama_folder, tmp_path / "ours", {})
    assert_nothing_written(tmp_path / "ours")


@pytest.mark.parametrize(
    ("section", "update", "difference"),
    [
        ("projector", {"kind": "mlp"}, r"projector\.kind is 'mlp' and would become 'linear'"),
        (
            "vision",
            {"local_attention": "tile", "padding_tiles": "drop"},
            r"vision\.local_attention is 'tile' .* vision\.padding_tiles is 'drop'",
        ),
        ("decoder", {"num_extra_embeddings": 9}, r"decoder\.num_extra_embeddings is 9 .* 8"),
    ],
)
def test_what_mllama_cannot_express_is_refused_by_name(
    processor: Processor,
    ours: Path,
    tmp_path: Path,
    section: str,
    update: dict[str, Any],
    difference: str,
) -> None:
    config = read_folder_config(ours).model.model_dump()
    config[section] |= update
    save_ours(tmp_path / "own", VLMConfig.model_validate(config), processor)
    with pytest.raises(UserError, match=f"cannot express this model: .*{difference}"):
        to_hf(tmp_path / "own", tmp_path / "back")
    assert_nothing_written(tmp_path / "back")


def test_each_direction_refuses_the_other_kind_of_folder(
    ours: Path, mllama_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is a model folder of ours already"):
        from_hf(ours, tmp_path / "out", {})
    with pytest.raises(UserError, match="is a transformers folder already"):
        to_hf(mllama_source, tmp_path / "out")


def test_an_out_that_holds_something_is_refused_and_left_alone(
    mllama_source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out is not empty"):
        from_hf(mllama_source, out, {})
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file exists and is no folder"):
        from_hf(mllama_source, tmp_path / "file", {})


def test_an_empty_out_is_filled(mllama_source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    from_hf(mllama_source, tmp_path / "out", {})
    assert len(stored_tensors(tmp_path / "out")) == len(stored_tensors(mllama_source))


def test_a_write_that_fails_leaves_nothing(mllama_source: Path, tmp_path: Path) -> None:
    # The system refuses files above 50 kB: writing fails in the middle, as on a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"out \([\d,]+ bytes\) cannot be written: File too"):
            from_hf(mllama_source, tmp_path / "deep" / "out", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    mllama_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000))
    with pytest.raises(UserError, match=r"cannot be written: [\d,]+ bytes are needed, 1,000 are"):
        from_hf(mllama_source, tmp_path / "deep" / "out", {})
    assert list(tmp_path.iterdir()) == []


# Everything is imported and run once, and the kernel's record of the peak set back, before memory
# is read: what follows is the copying. Prints growth in bytes.
CONVERT_AND_MEASURE = """
import sys
from pathlib import Path
from vlm.weights.convert import from_hf, to_hf
def memory(field):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])
small, large, out = map(Path, sys.argv[1:])
from_hf(small, out / "small", {})
to_hf(out / "small", out / "small_back")
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
from_hf(large, out / "ours", {})
to_hf(out / "ours", out / "back")
print(memory("VmHWM") - before)
"""
SHARD_BYTES = 150_000_000


def large_folder(small: Path, folder: Path) -> list[int]:
    """Make a Mllama of three shards of some 150 MB, zeros that take no room on the disk.

    Returns the shards' sizes.
    """
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    text = content(folder / "config.json")["text_config"]
    hidden_size = 1024
    rows = SHARD_BYTES // (4 * hidden_size)
    text |= {"vocab_size": rows - 8, "hidden_size": hidden_size, "intermediate_size": 2600}
    text |= {"num_hidden_layers": 4, "cross_attention_layers": [3]}
    change(folder / "config.json", text_config=text)
    shapes = {
        str(mllama_name(name)): shape
        for name, shape in tensor_shapes(read_folder_config(folder).model).items()
    }
    heads = [name for name in shapes if "lm_head" in name or "embed_tokens" in name]
    shards = [[heads[0]], [heads[1]], [name for name in shapes if name not in heads]]
    weight_map, sizes = {}, []
    for number, names in enumerate(shards):
        header, end = {}, 0
        for name in names:
            start, end = end, end + 4 * math.prod(shapes[name])
            header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        path = folder / f"{number}.safetensors"
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
        os.truncate(path, 8 + len(encoded) + end)
        weight_map |= dict.fromkeys(names, path.name)
        sizes.append(end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sizes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_shards(mllama_source: Path, tmp_path: Path) -> None:
    sizes = large_folder(mllama_source, tmp_path / "large")
    assert min(sizes) > 0.9 * SHARD_BYTES
    script = [sys.executable, "-c", CONVERT_AND_MEASURE]
    places = [str(mllama_source), str(tmp_path / "large"), str(tmp_path)]
    ran = subprocess.run([*script, *places], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    copied = stored_tensors(tmp_path / "back")
    assert sum(tensor.num_bytes for tensor in copied.values()) == sum(sizes)
    for name in ("ours", "back"):  # pytest keeps the folders of the last runs
        shutil.rmtree(tmp_path / name)
    # Promised: 1.3 times the largest shard and 200 MB. Copying needs its buffer of 8 MB and the
    # headers, whatever the shard's size, so 45 MB leave room, and a tensor that is read whole
    # (150 MB) would be found out.
    assert int(ran.stdout) < 0.3 * SHARD_BYTES
