"""A real model behind the server: its answers are those of the Python API, whoever else asks."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

import vlm
from vlm.chat.processor import Processor
from vlm.chat.template import TEMPLATE_FILE
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.server.config import ServerConfig
from vlm.server.load import service_of
from vlm.weights.folder import COMPONENTS, FORMAT, FolderConfig, save_folder

QUESTIONS = (
    "How many red circles are there?",
    "What colour is the large square?",
    "Is a green triangle left of the circle?",
    "Describe the image.",
)
SHORT = {"max_tokens": 12}


@pytest.fixture
def folder(tmp_path: Path, open_model: VisionLanguageModel, processor: Processor) -> Path:
    components = {name: getattr(open_model, name) for name in COMPONENTS}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=open_model.config
    )
    save_folder(tmp_path / "tiny", described, components, processor, {})
    return tmp_path / "tiny"


@pytest.fixture
def model(folder: Path) -> vlm.Model:
    return vlm.load(folder, device="cpu", dtype="float32")


@pytest.fixture
def served_model(serve: Any, model: vlm.Model) -> Any:
    """The model, served; four slots for sixteen clients."""
    config = ServerConfig(slots=4, queue=32)
    return serve(service=service_of(model, config))


@pytest.fixture
def conversations(
    image_part: Any, text_part: Any, encoded: Callable[..., bytes]
) -> list[tuple[list[Any], list[Any]]]:
    """Sixteen: for the server, and for the Python API; with no, one and two images."""
    found = []
    for number in range(16):
        seeds = list(range(number, number + number % 3))
        words = text_part(QUESTIONS[number % 4])
        width_px = 16 * (1 + number % 2)
        posted = [*(image_part(seed, width_px=width_px) for seed in seeds), words]
        told = [
            *({"type": "image", "image": encoded(seed, width_px=width_px)} for seed in seeds),
            words,
        ]
        found.append(([{"role": "user", "content": posted}], [{"role": "user", "content": told}]))
    return found


def test_sixteen_clients_get_what_one_after_the_other_would(
    served_model: Any, model: vlm.Model, conversations: list[tuple[list[Any], list[Any]]]
) -> None:
    expected = [model.chat(told, **SHORT) for _, told in conversations]
    replies: list[Any] = [None] * len(conversations)
    url = f"{served_model.url}/v1"

    def ask(number: int) -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            replies[number] = client.chat.completions.create(
                model="tiny", messages=conversations[number][0], **SHORT
            )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reply, reference in zip(replies, expected, strict=True):
        assert reply.choices[0].message.content == reference.text
        assert reply.choices[0].finish_reason == reference.finish_reason
        assert reply.usage.prompt_tokens == reference.usage.prompt_tokens
        assert reply.usage.completion_tokens == reference.usage.completion_tokens
    assert len({reference.text for reference in expected}) > 8


def test_a_seed_repeats_an_answer_and_logprobs_are_of_its_tokens(served_model: Any) -> None:
    settings = {"temperature": 1.0, "seed": 7, "logprobs": True, "top_logprobs": 3, "n": 2}
    first, second = (served_model.ask(QUESTIONS[0], **settings).json() for _ in range(2))
    for choice, again in zip(first["choices"], second["choices"], strict=True):
        assert choice["message"] == again["message"]
        # The second time the prompt is reused, and kernels add in another order.
        given, repeated = (
            [token["logprob"] for token in found["logprobs"]["content"]]
            for found in (choice, again)
        )
        assert given == pytest.approx(repeated, abs=1e-4)
    one, other = first["choices"]
    assert one["message"]["content"] != other["message"]["content"]
    for token in one["logprobs"]["content"]:
        assert token["logprob"] <= 0 and len(token["top_logprobs"]) == 3
        likeliest = [top["logprob"] for top in token["top_logprobs"]]
        assert likeliest == sorted(likeliest, reverse=True)
        assert token["logprob"] <= likeliest[0]


def test_44_pictures_of_the_same_bytes_get_answers_of_their_own(
    served_model: Any, model: vlm.Model
) -> None:
    import base64
    from io import BytesIO

    from PIL import Image

    pixels = bytes((7 * i) % 256 for i in range(16 * 32 * 3))
    answers, expected = [], []
    for mode, size in (("RGB", (16, 32)), ("RGB", (32, 16)), ("L", (32, 48)), ("L", (48, 32))):
        file = BytesIO()
        Image.frombytes(mode, size, pixels).save(file, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        part = {"type": "image_url", "image_url": {"url": uri}}
        reply = served_model.ask(part, {"type": "text", "text": QUESTIONS[3]}, **SHORT)
        answers.append(reply.json()["choices"][0]["message"]["content"])
        expected.append(model.ask(file.getvalue(), QUESTIONS[3], **SHORT))
    assert answers == expected
    assert len(set(answers)) == len(answers)


HOSTILE_TEMPLATES = {
    "classes": "{{ ().__class__.__base__.__subclasses__() }}",
    "system": "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "import": "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}",
    "endless": "{% for i in range(10**12) %}x{% endfor %}",
    "silent": "nothing of the chat",
}


def test_a_context_beyond_the_models_is_refused(model: vlm.Model) -> None:
    assert service_of(model, ServerConfig(max_context=100)).max_context == 100
    assert service_of(model, ServerConfig()).max_context == 256
    with pytest.raises(UserError, match="256 positions"):
        service_of(model, ServerConfig(max_context=257))


@pytest.mark.parametrize("name", HOSTILE_TEMPLATES)
def test_43_a_hostile_template_is_refused_at_the_start(
    folder: Path, tmp_path: Path, name: str
) -> None:
    marker = tmp_path / "marker"
    source = HOSTILE_TEMPLATES[name].replace("MARKER", str(marker))
    (folder / TEMPLATE_FILE).write_text(source)
    with pytest.raises(UserError, match="cannot be served"):
        service_of(vlm.load(folder, device="cpu"), ServerConfig())
    assert not marker.exists()


def test_43_code_in_a_model_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    for name in ("tokenization_tiny.py", "modeling_tiny.py", "__init__.py"):
        (folder / name).write_text(code)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_tiny.Tiny", None]}
    path.write_text(json.dumps(config))
    service_of(vlm.load(folder, device="cpu"), ServerConfig())
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {"AutoModel": "modeling_tiny.Tiny"}
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="auto_map"):
        vlm.load(folder, device="cpu")
    assert not marker.exists()
