"""Files of a checkpoint that nobody would write: the right tokens, or one sentence.

Every header, index, configuration, tokenizer and set of generation settings that is
accepted gives the tokens of transformers' own resident model of the same folder, and
every other one is refused by InvalidInput, never by whatever came up.
"""

import json
import os
import random
import shutil
import signal
from contextlib import contextmanager
from functools import cache

import gguf_files
import mutation
import pytest
import safetensors
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from thesis_book.__main__ import app
from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.compress.convert import compress_checkpoint
from thesis_lib.memory.decode.generate import Streaming, generate_text
from thesis_lib.memory.model import gguf
from thesis_lib.memory.model.checkpoint import (
    INDEX,
    MANIFEST,
    NON_LAYER,
    SINGLE,
    file_name,
)
from thesis_lib.memory.model.gguf_file import read_gguf
from thesis_lib.memory.model.pretrained import quiet
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.offloaded_model import plan_checkpoint
from thesis_lib.memory.offload.store import SafetensorsStore

PROMPT, NEW, MEMORY = "so is it", 3, 2**26
KINDS = {
    "header": SINGLE,
    "index": INDEX,
    "config": "config.json",
    "tokenizer": "tokenizer.json",
    "tokenizer_config": "tokenizer_config.json",
    "generation": "generation_config.json",
}
SETTINGS = {
    "bos_token_id": 1,
    "eos_token_id": [3, 90],
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "transformers_version": "5.0.0",
}


def write(folder, architecture="llama", sharded=False, **changes):
    """A tiny model of two layers with all the files that can come with one."""
    if "layer_types" in tiny.SHAPES[architecture]:
        changes["layer_types"] = ["sliding_attention", "full_attention"]
    tiny.write(folder, architecture, num_hidden_layers=2, **changes)
    tiny.give_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS))
    if sharded:
        tensors = load_file(folder / SINGLE)
        (folder / SINGLE).unlink()
        names = sorted(tensors)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, inside in shards.items():
            part = {name: tensors[name] for name in inside}
            save_file(part, folder / shard, metadata={"format": "pt"})
        weight_map = {name: shard for shard, part in shards.items() for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index))
    return folder


@contextmanager
def no_longer_than(seconds):
    """A test that waits for a pipe fails instead of hanging."""

    def ring(*_):
        raise TimeoutError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(work):
    """Whether `work` is refused; the refusal is one line that can be printed."""
    try:
        work()
    except InvalidInput as error:
        said = str(error)
        assert said.isprintable(), said
        assert len(said) < 1000, said
        return True
    return False


def write_text(folder):
    """The text that this project writes with the folder."""
    return generate_text(str(folder), MEMORY, PROMPT, NEW)["text"]


def resident_text(folder):
    """What transformers makes of the folder, by its own reader and in memory.

    It demands of an index that it has metadata, of which nothing depends.
    """
    index = folder / INDEX
    if index.is_file():
        content = json.loads(index.read_text())
        index.write_text(json.dumps({"metadata": {}} | content))
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        row = tokenizer(PROMPT, return_tensors="pt").input_ids
        found = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=NEW,
            do_sample=False,
        )
    return tokenizer.decode(found[0, row.shape[1] :], skip_special_tokens=True)


def look(folder):
    """Whether the folder is refused by all that reads it; else its text is compared.

    A plan and a lossless copy look at fewer files: they may do what a text does not.
    """
    text = []
    generating = refused(lambda: text.append(write_text(folder)))
    planning = refused(
        lambda: plan_checkpoint(folder, Machine(MEMORY, 1e9), context=16)
    )
    out = folder.with_name("out")
    copying = refused(
        lambda: compress_checkpoint(str(folder), out, "lossless", tokens=0)
    )
    shutil.rmtree(out, ignore_errors=True)
    assert generating or not (planning or copying)
    if not generating:
        assert text == [resident_text(folder)]
    return generating


def campaign(path, kind, seeds, look, change):
    """Change a file in as many ways as there are seeds, and look at its folder.

    Returns how many were rejected. The file is as it was afterwards.
    """
    content, count = path.read_bytes(), 0
    try:
        assert not look(path.parent)
        for seed in seeds:
            path.write_bytes(change(content, random.Random(f"{kind} {seed}")))
            try:
                with no_longer_than(60):
                    count += look(path.parent)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # of a library in Rust, a panic is no other
                raise AssertionError(
                    f"{kind}, seed {seed}: {type(error).__name__}: {error}"
                ) from error
    finally:
        path.write_bytes(content)
    return count


def look_at_tensors(folder):
    """Whether the folder is refused; else its tensors are those of the library."""
    found = {}

    def read():
        with SafetensorsStore(folder) as store:
            for layer in range(NON_LAYER, store.layers):
                found.update(tiny.read(store, layer))

    if refused(read):
        return True
    expected = {}
    for file in folder.glob("*.safetensors"):
        for name, entry in safetensors.deserialize(file.read_bytes()):
            expected[name] = entry["dtype"], entry["shape"], bytes(entry["data"])
    assert found == expected
    return False


def look_at_packed(folder):
    """Whether a checkpoint of this project is refused, by its manifest or as read."""

    def read():
        for verify in (True, False):
            with SafetensorsStore(folder, verify) as store:
                for layer in range(NON_LAYER, store.layers):
                    tiny.read(store, layer)

    return refused(read)


def look_at_gguf(folder):
    """Whether a GGUF file is refused; else its tensors are within it."""
    path = folder / "model.gguf"

    def read():
        file = read_gguf(path)
        gguf.place(file, gguf.read_config(file))
        size = path.stat().st_size
        assert all(each.start + each.nbytes <= size for each in file.tensors.values())

    return refused(read)


def write_packed(folder):
    write(folder / "dense")
    compress_checkpoint(str(folder / "dense"), folder / "out", "lossless", tokens=0)
    return folder / "out"


def write_gguf(folder):
    model = gguf_files.make(folder / "dense", num_hidden_layers=1)
    return gguf_files.write(folder / "model.gguf", "llama", model).parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole folder of each architecture, made once; sharded for an index."""
    writers = {"packed": write_packed, "gguf": write_gguf}

    @cache
    def written(architecture, sharded):
        home = tmp_path_factory.mktemp(architecture)
        if architecture in writers:
            return writers[architecture](home)
        return write(home / "model", architecture, sharded)

    return lambda architecture, kind="header": written(architecture, kind == "index")


@pytest.fixture
def model(folders, tmp_path):
    """A folder that a test may change."""
    return shutil.copytree(folders("llama"), tmp_path / "model")


READERS = {  # folder, file, how it is changed, who reads it
    "header": ("llama", SINGLE, mutation.mutated_file, look_at_tensors),
    "header's bytes": ("llama", SINGLE, mutation.mutated_bytes, look_at_tensors),
    "index": ("llama", INDEX, mutation.mutated_bytes, look_at_tensors),
    "manifest": ("packed", MANIFEST, mutation.mutated_bytes, look_at_packed),
    "code": ("packed", file_name(1), mutation.mutated_bytes, look_at_packed),
    "gguf": ("gguf", "model.gguf", mutation.mutated_bytes, look_at_gguf),
}


@pytest.mark.parametrize(
    ("folder", "name", "change", "look"), READERS.values(), ids=READERS
)
def test_altered_bytes_are_read_rightly_or_rejected(
    folders, folder, name, change, look
):
    path = folders(folder, "index" if name == INDEX else "header") / name
    assert campaign(path, name, range(200), look, change) > 0


def changes_of(kind):
    return mutation.mutated_file if kind == "header" else mutation.mutated


PROOFS = [
    ("llama", "header", range(10_000, 15_000), look_at_tensors),
    ("llama", "index", range(10_000, 14_000), look_at_tensors),
    *((name, "config", range(20_000, 20_300), look) for name in tiny.SHAPES),
    *(("qwen2", kind, range(30_000, 30_250), look) for kind in KINDS),
]
CAMPAIGNS = [
    *(("llama", kind, range(1000, 1024), look) for kind in KINDS),
    *(pytest.param(*row, marks=pytest.mark.proof) for row in PROOFS),
]


@pytest.mark.parametrize(("architecture", "kind", "seeds", "look"), CAMPAIGNS)
def test_files_that_were_changed_run_rightly_or_are_rejected(
    folders, architecture, kind, seeds, look
):
    path = folders(architecture, kind) / KINDS[kind]
    assert 0 < campaign(path, kind, seeds, look, changes_of(kind)) < len(seeds)


OPTIONAL = (
    MANIFEST,
    "special_tokens_map.json",
    "added_tokens.json",
    *list(KINDS.values())[4:],
)  # a model runs without
LINKS = "/dev/zero", "/dev/tty", "itself", "nowhere"


@pytest.mark.parametrize("place", [*KINDS.values(), "a.safetensors", *OPTIONAL[:3]])
def test_what_is_no_file_is_rejected_and_nobody_waits_for_it(folders, tmp_path, place):
    whole = folders("llama", "index" if place in (INDEX, "a.safetensors") else "header")
    for number, thing in enumerate((os.mkfifo, os.mkdir, *LINKS)):
        folder = shutil.copytree(whole, tmp_path / str(number))
        path = folder / place
        path.unlink(missing_ok=True)
        if callable(thing):
            thing(path)
        else:
            path.symlink_to(place if thing == "itself" else thing)
        with no_longer_than(30):
            gone = refused(lambda f=folder: write_text(f))
        assert gone or place in OPTIONAL, f"{thing} as {place}"


BESIDE = ("../a.safetensors", "/dev/zero", "..", ".", "", "a/../a.safetensors", "\0")


@pytest.mark.parametrize("name", [*BESIDE, 7, None])
def test_an_index_names_files_beside_it(folders, tmp_path, name):
    folder = shutil.copytree(folders("llama", "index"), tmp_path / "model")
    shutil.copy(folder / "a.safetensors", tmp_path)
    index = json.loads((folder / INDEX).read_text())
    weights = index["weight_map"]
    index["weight_map"] = {
        key: name if file == "a.safetensors" else file for key, file in weights.items()
    }
    (folder / INDEX).write_text(json.dumps(index))
    with no_longer_than(30):
        assert refused(lambda: SafetensorsStore(folder))


def test_a_link_to_a_file_elsewhere_is_how_hubs_keep_files(model, tmp_path):
    (model / SINGLE).rename(tmp_path / "blob")
    (model / SINGLE).symlink_to(tmp_path / "blob")
    assert write_text(model) == resident_text(model)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt"])
@pytest.mark.parametrize("size", [10**9, 10**6, 5000, 3])
def test_a_size_that_the_files_do_not_have_is_rejected_before_anything_is_built(
    folders, tmp_path, monkeypatch, architecture, size
):
    """A list of a thousand million layers takes 15 GiB and a minute."""
    folder = shutil.copytree(folders(architecture, "header"), tmp_path / "model")

    def build(*_, **__):
        raise AssertionError("transformers was asked to build the model")

    monkeypatch.setattr(AutoConfig, "from_pretrained", build)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    wide = "ffn_dim" if architecture == "opt" else "intermediate_size"
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", wide):
        changed = {"word_embed_proj_dim": size} if name == "hidden_size" else {}
        path.write_text(json.dumps(config | {name: size} | changed))
        assert refused(lambda: plan_checkpoint(folder, Machine(MEMORY, 1e9))), name
        assert refused(
            lambda: compress_checkpoint(str(folder), tmp_path / "out", "int8")
        ), name
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_the_table_that_it_is_tied_to_is_rejected(tmp_path):
    """transformers then keeps the two apart, whatever the configuration says."""
    folder = write(tmp_path / "model", tie_word_embeddings=False)
    tiny.edit_json(folder / "config.json", tie_word_embeddings=True)
    assert refused(lambda: write_text(folder))
    tensors = load_file(folder / SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    assert write_text(folder) == resident_text(folder)


def test_a_tensor_under_two_names_is_rejected(model, tmp_path):
    tensors = load_file(model / SINGLE)
    tensors["embed_tokens.weight"] = 2 * tensors["model.embed_tokens.weight"]
    save_file(tensors, model / SINGLE, metadata={"format": "pt"})
    assert refused(lambda: write_text(model))


def test_tokens_that_the_model_does_not_know_are_rejected(model, tmp_path):
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["i"] = tiny.VOCAB
    path.write_text(json.dumps(content))
    assert refused(lambda: write_text(model))
    with pytest.raises(InvalidInput):
        compress_checkpoint(str(model), tmp_path / "out", "lossless", tokens=100)


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta", "mps", ""])
def test_a_device_that_is_not_here_is_rejected(folders, device):
    folder, streaming = str(folders("llama", "header")), Streaming(device=device)
    assert refused(lambda: generate_text(folder, MEMORY, PROMPT, NEW, streaming))


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_says_one_sentence(folders, tmp_path, kind):
    folder = shutil.copytree(folders("llama", kind), tmp_path / "model")
    path = folder / KINDS[kind]
    content, statuses = path.read_bytes(), []
    for seed in range(4):
        path.write_bytes(changes_of(kind)(content, random.Random(f"{kind} {seed}")))
        out = tmp_path / f"out{seed}"
        for words in (
            f"generate {folder} --device-memory 64MiB --prompt so --max-new-tokens 2",
            f"plan {folder} --device-memory 64MiB",
            f"compress {folder} {out} --weights lossless --tokens 0",
        ):
            if words.startswith("plan") and kind != "config":
                continue  # times the machine, which the others do not need
            done = CliRunner().invoke(app, words.split())
            place = f"{kind}, seed {seed}, {words}: {done.exception!r}"
            assert done.exit_code in (0, 2), place
            if done.exit_code:
                assert isinstance(done.exception, SystemExit), place
                assert done.stderr.splitlines()[-1].startswith("thesis: "), place
            statuses.append(done.exit_code)
    assert 2 in statuses
