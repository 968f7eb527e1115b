"""Folders that try to make transformers run code, connect, hang or fill the memory.

`python -m tests.model.hostile FOLDER [NAME ...]` analyses each, or those named, in one process in
which peft, kernels and bitsandbytes can be imported, and writes what happened as JSON.
"""

import gc
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from localrank_cli import analyze
from localrank_cli.errors import LocalrankError
from localrank_cli.model.hf import library
from tests.helpers import Evil, evil_code

LIMIT_S = 30  # for one folder; each takes about a second
REPO = "evil/kernel"  # a repository of the Hub, by the form of its name
FAKES = {"peft": "0.19.1", "kernels": "0.18.5", "bitsandbytes": "0.48.0"}

# Decorators and classes serve while transformers is imported; whatever loads code leaves a mark.
_FAKE = """
import pathlib
MARKS = pathlib.Path({marks!r})
if {name!r} != "kernels":  # transformers imports kernels by itself
    (MARKS / {name!r}).touch()

def get_kernel(*args, **kwargs):
    (MARKS / "get_kernel").touch()
    raise FileNotFoundError("this repository is a fake")

def kernelize(*args, **kwargs):
    (MARKS / "kernelize").touch()

def _decorator(*args, **kwargs):
    return lambda wrapped: wrapped

use_kernel_forward_from_hub = use_kernelized_func = _decorator

class _Any:
    def __init__(self, *args, **kwargs): pass

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Any
"""


def write_fakes(place: Path, marks: Path) -> None:
    """Write packages of these names, with the metadata by which transformers finds them."""
    marks.mkdir(parents=True)
    for name, version in FAKES.items():
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text(_FAKE.format(marks=str(marks), name=name))
        info = place / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "top_level.txt").write_text(f"{name}\n")


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return write


def _entries(*place: str, **entries: Any) -> Callable[[Path], None]:
    """Set entries of the config, in the sub-config of that place."""

    def change(config: dict[str, Any]) -> None:
        for key in place:
            config = config.setdefault(key, {})
        config.update(entries)

    return _config(change)


def _text(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return write


def _code(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(evil_code(folder.parents[1] / "marks" / name))

    return write


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(
        {"weight": Evil(folder.parents[1] / "marks" / "pickle")}, folder / "pytorch_model.bin"
    )


def _index(*, names: str = "", fifo: bool = False) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / f"outside_{folder.name}.safetensors")
        path = folder / "model.safetensors.index.json"
        if fifo:
            os.mkfifo(path)
        else:
            path.write_text(json.dumps({"weight_map": {"transformer.wte.weight": names}}))

    return write


_QUANTIZED = {"quant_method": "bitsandbytes", "load_in_4bit": True}
_ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "evil/base"})
RUNS = "ok"

# What is done to the folder -> a pattern of the message, or RUNS. The folder's network is GPT-2's;
# for names that begin with "nested", LLaVA's.
CASES: Mapping[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"{key}": (_entries(**{key: REPO}), RUNS)
        for key in (
            "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
            "experts_implementation", "_experts_implementation",
            "_experts_implementation_internal",
        )
    },
    **{
        f"nested {key} in {part}": (_entries(part, **{key: REPO}), RUNS)
        for key in (
            "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
            "experts_implementation", "_experts_implementation_internal",
        )
        for part in ("text_config", "vision_config")
    },
    "attention of a part": (_entries(attn_implementation={"": REPO, "text_config": REPO}), RUNS),
    "nested attention by part": (
        _entries(attn_implementation={"text_config": REPO, "vision_config": REPO}), RUNS,
    ),
    "text_config in a network without one": (
        _entries("text_config", attn_implementation=REPO), "config.json: ",
    ),
    "kernels": (_entries(use_kernels=True, kernel_config={"kernel_mapping": {"A": REPO}}), RUNS),
    "fusion_config": (_entries(fusion_config={"patch_embeddings": True}), RUNS),
    "fusion_config of another type": (_entries(fusion_config=[REPO]), RUNS),
    "quantization": (_entries(quantization_config=_QUANTIZED), "quantization_config says"),
    "quantization in a part": (
        _entries("text_config", quantization_config=_QUANTIZED),
        r"text_config\.quantization_config",
    ),
    "nested quantization": (
        _entries("vision_config", quantization_config=_QUANTIZED),
        r"vision_config\.quantization_config",
    ),
    "quantization that says nothing": (_entries(quantization_config={}), RUNS),
    "quantization in a list": (
        _entries(parts=[{"quantization_config": _QUANTIZED}]), r"quantization_config says",
    ),
    "compression": (_entries(compression_config=_QUANTIZED), RUNS),
    "adapter": (_text("adapter_config.json", _ADAPTER), r"adapter_config\.json: an adapter"),
    "adapter as a dangling link": (
        _instead("adapter_config.json", lambda path: path.symlink_to("/nowhere")),
        r"adapter_config\.json: an adapter",
    ),
    "adapter as a FIFO": (_instead("adapter_config.json", os.mkfifo), r"adapter_config\.json: an"),
    "adapter as a folder": (_instead("adapter_config.json", os.mkdir), r"adapter_config\.json: an"),
    "config as a FIFO": (_instead("config.json", os.mkfifo), "is not a file"),
    "config as a device": (
        _instead("config.json", lambda path: path.symlink_to("/dev/zero")), "is not a file",
    ),
    "config as a folder": (_instead("config.json", os.mkdir), "is not a file"),
    "config as a dangling link": (
        _instead("config.json", lambda path: path.symlink_to("/nowhere")), "cannot be read",
    ),
    "config as a link in a circle": (
        _instead("config.json", lambda path: path.symlink_to(path)), "cannot be read",
    ),
    "config of 1 GB": (_instead("config.json", _sparse), "1073741824 bytes"),
    "config nested deeply": (_text("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000), "JSON"),
    "config nested less deeply": (
        _text("config.json", '{"model_type": "gpt2", "b": ' + '{"a":' * 900 + "1" + "}" * 901),
        "nested more than",
    ),
    "config with a list nested": (
        _text("config.json", '{"a": ' + "[" * 900 + "]" * 900 + "}"), "nested more than",
    ),
    "config without UTF-8": (
        _instead("config.json", lambda path: path.write_bytes(b'{"a": "\xff"}')), "is not JSON",
    ),
    "config nested at the limit of Python": (
        _text("config.json", '{"model_type": "gpt2", "b": ' + '{"a":' * 980 + "1" + "}" * 981), "",
    ),
    **{
        f"size {value!r:.30}": (_entries(n_embd=value), r"config\.json: ")
        for value in ("8", "eight", -8, 0, 1.5, float("nan"), float("inf"), [8], {"a": 8}, None,
                      True, 2**31, 10**18, 10**400)
    },
    **{
        f"layers {value!r:.30}": (_entries(n_layer=value), r"config\.json: ")
        for value in ("2", -1, float("nan"), [2], None, 10**6, 10**9, 10**18, 10**400)
    },
    "heads 10**18": (_entries(n_head=10**18), r"config\.json: "),
    "no heads": (_entries(n_head=0), r"config\.json: "),
    "vocabulary 10**12": (_entries(vocab_size=10**12), r"config\.json: "),
    "positions 10**9": (_entries(n_positions=10**9), r"config\.json: "),
    "inner size 10**12": (_entries(n_inner=10**12), r"config\.json: "),
    "labels 10**12": (_entries(num_labels=10**12), r"config\.json: "),
    "nested layers 10**12": (_entries("text_config", num_hidden_layers=10**12), r"config\.json: "),
    "nested positions 10**12": (
        _entries("vision_config", image_size=10**9), r"config\.json: ",
    ),
    "activation": (_entries(activation_function="os.system"), r"config\.json: "),
    "dtype": (_entries(dtype="manual_seed"), "cannot use it"),
    "dtype that is none": (_entries(dtype=7), RUNS),
    "code in auto_map": (
        _entries(auto_map={"AutoConfig": f"{REPO}--code.Evil", "AutoModel": "code.Evil"}), RUNS,
    ),
    **{
        f"architectures {value!r}": (_entries(architectures=value), expected)
        for value, expected in (
            ("GPT2LMHeadModel", RUNS), (["os"], RUNS), ([["x"]], RUNS), ({"a": 1}, RUNS),
            (7, RUNS), (["__class__"], RUNS), (["PreTrainedModel"], RUNS),
            (["GPT2PreTrainedModel"], "config.json"), (["BertModel"], "config.json: "),
        )
    },
    "model_type of a list": (_entries(model_type=["gpt2"]), "model_type"),
    "other weights outside": (_entries(transformers_weights="/etc/passwd"), RUNS),
    "other weights of the folder": (
        _config(lambda config: config.update(transformers_weights="config.json")),
        "transformers_weights names config.json",
    ),
    "extra_files": (_entries(extra_files=["../../x", "/etc/passwd"]), RUNS),
    "distributed": (
        _entries(distributed_config={"tp_size": 8}, base_model_tp_plan={"*": REPO}), RUNS,
    ),
    "layers each of its own": (
        _entries(per_layer_config={"0": {"n_embd": 10**12}}), "config.json: ",
    ),
    "name of the Hub": (_entries(_name_or_path="evil/model", name_or_path="evil/model"), RUNS),
    "hooks of the config": (_entries(__class__="x"), "cannot use it"),
    "methods of the config": (_entries(to_dict="x", get_text_config=3), "cannot use it"),
    "generation_config": (
        _text("generation_config.json", '{"trust_remote_code": true, "custom_generate": "evil/x"'),
        RUNS,
    ),
    "generation_config as a FIFO": (_instead("generation_config.json", os.mkfifo), RUNS),
    "custom_generate": (_code("custom_generate/generate.py"), RUNS),
    "code of the network": (_code("modeling_gpt2.py"), RUNS),
    "index as a FIFO": (_index(fifo=True), r"model\.safetensors\.index\.json"),
    "index that leads out": (_index(names="../outside_x.safetensors"), "is not in its folder"),
    "index of an absolute path": (_index(names="/etc/passwd"), "is not in its folder"),
    "index of itself": (_index(names="model.safetensors.index.json"), "index.json: "),
    "pickle that calls": (_pickled, "needs code to load"),
    "weights as a FIFO": (_instead("model.safetensors", os.mkfifo), r"model\.safetensors"),
    "weights as a device": (
        _instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
        r"model\.safetensors",
    ),
    "settings that choose kernels": (
        _text("../localrank.toml", f'model = "hf"\n[model-arg]\nattn_implementation = "{REPO}"'),
        "attn_implementation=evil/kernel: is not one of eager, sdpa",
    ),
    "settings that choose other kernels": (
        _text("../localrank.toml", f'model = "hf"\n[model-arg]\n_attn_implementation = "{REPO}"'),
        "this entry chooses kernels",
    ),
}  # fmt: skip


def _base(transformers: Any, folder: Path) -> None:
    """Write a tiny GPT-2 and a tiny LLaVA."""
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )
    ).save_pretrained(folder / "plain")  # fmt: skip
    sizes = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2
    }  # fmt: skip
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            **sizes, vocab_size=20, pad_token_id=0, bos_token_id=0, eos_token_id=1
        ),
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4),
        image_token_index=3,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder / "nested")


class _TooLong(BaseException):
    pass


def _alarm(number: int, frame: object) -> None:
    raise _TooLong


def main(root: Path, names: list[str]) -> dict[str, Any]:
    """Analyze each folder, and return what happened, by its name."""
    write_fakes(root / "fakes", root / "marks")
    sys.path.insert(0, str(root / "fakes"))
    connected: list[str] = []

    def refuse(self: socket.socket, address: object) -> None:
        connected.append(repr(address))
        raise OSError("no network in this test")

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]  # patched on purpose
    import transformers  # sees the fakes only now

    _base(transformers, root / "base")
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    signal.signal(signal.SIGALRM, _alarm)
    found: dict[str, Any] = {}
    for number, name in enumerate(CASES):
        if names and name not in names:
            continue
        folder = root / f"case_{number}" / "step_1"
        kind = "nested" if name.startswith("nested") else "plain"
        shutil.copytree(root / "base" / kind, folder)
        CASES[name][0](folder)
        # Each build of a network walks through all objects but those of the libraries, put aside.
        gc.collect()
        gc.freeze()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connected.clear()
        started = time.process_time()
        signal.alarm(LIMIT_S)
        try:
            model = None if (folder.parent / "localrank.toml").exists() else "hf"
            analyze(folder, model=model, data="normal:3x8", points=1, device="cpu")
            message = RUNS
        except LocalrankError as error:
            message = f"error: {error}"
        except _TooLong:
            message = "hangs"
        except BaseException as error:  # what a user would see as a traceback
            message = f"bug: {type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        found[name] = {
            "message": message,
            "seconds": time.process_time() - started,
            "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
            "connected": list(connected),
            "marks": sorted(mark.name for mark in (root / "marks").iterdir()),
        }
        for mark in (root / "marks").iterdir():
            mark.unlink()
    try:
        with library():  # as a network that asks for its kernels without an entry of a config
            transformers.integrations.hub_kernels.get_kernel(REPO, version=1)
    except FileNotFoundError as error:
        found["a network's own kernels"] = str(error)
    found["marks at the end"] = [mark.name for mark in (root / "marks").iterdir()]
    return found


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), sys.argv[2:])
    Path(sys.argv[1], "result.json").write_text(json.dumps(result))
