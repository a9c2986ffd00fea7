"""Tiny random models of every architecture that is streamed, on disk and resident."""

import json
from contextlib import contextmanager

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from thesis_lib.memory.model.checkpoint import allocate
from thesis_lib.memory.model.pretrained import quiet
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import StreamedModel, plan_checkpoint

VOCAB, LAYERS = 211, 4
ROW = 8  # bytes of a token's number, which the caller holds
WORDS = 5003  # of a table that is some times a layer
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_GROUPED = {"intermediate_size": 80, "num_key_value_heads": 2, "head_dim": 8}
SHAPES = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 7},
    "qwen2": {"intermediate_size": 80, "num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "gpt_neox": {"intermediate_size": 80},
    "gemma": _GROUPED,
    "gemma2": {**_GROUPED, "sliding_window": 7},
    "gemma3_text": {
        **_GROUPED,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "phi3": {**_GROUPED, "sliding_window": 7},
    "olmo2": _GROUPED,
    "granite": {**_GROUPED, "attention_multiplier": 0.3, "logits_scaling": 3.0},
    "smollm3": {**_GROUPED, "no_rope_layer_interval": 2},
    "cohere": {**_GROUPED, "use_qk_norm": True},
    "cohere2": {
        **_GROUPED,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "stablelm": {**_GROUPED, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "phi": {"intermediate_size": 80, "partial_rotary_factor": 0.5},
}


def write(folder, architecture="llama", seed=0, dtype=torch.bfloat16, **changes):
    """A random model of the architecture, saved in `folder` and loaded from it."""
    torch.manual_seed(seed)
    shape = {**_SHAPE, **SHAPES[architecture], **changes}
    with quiet():
        config = AutoConfig.for_model(architecture, **shape, dtype=dtype)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        # Norms and biases start as ones and zeros, which would hide a wrong order.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def write_wide(folder, architecture="llama", **changes):
    """A random model whose layers take some hundred rows of its tables."""
    wide = {"ffn_dim" if architecture == "opt" else "intermediate_size": 400}
    return write(folder, architecture, vocab_size=WORDS, **wide, **changes)


def streams(folder):
    """Whether a checkpoint streams with the bits of the model loaded from it."""
    with quiet():
        resident = AutoModelForCausalLM.from_pretrained(folder).eval()
    with streamed(folder, context=20, pass_tokens=9) as twin:
        return agree(twin, resident)


def edit_json(path, **fields):
    """Set fields of the object that a JSON file holds."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def plan_ample(folder, **options):
    """The plan of a device that holds the whole checkpoint."""
    return plan_checkpoint(folder, Machine(2**50, 1e9), **options)


def plan_tight(folder, resident=0, ring=2, host=None, **options):
    """The plan with room for `resident` layers, and for `host` in host memory."""
    ample = plan_ample(folder, ring=ring, **options)
    fixed = ample.device_peak_bytes - ample.spec.layers * ample.staging_bytes
    host_bytes = 0 if host is None else (host + 2) * ample.staging_bytes
    machine = Machine(
        fixed + (ring + resident) * ample.staging_bytes, 1e9, host_bytes=host_bytes
    )
    made = plan_checkpoint(folder, machine, ring=ring, **options)
    layers = ample.spec.layers
    assert made.resident_layers in (resident, layers)
    return made


def plan_split(folder, resident=0, ring=2, host=None, **options):
    """The plan below the floor of a head that stays, with `resident` parts resident.

    Parts are layers, and those of the output head.
    """
    ample = plan_ample(folder, ring=ring, **options)
    below = Machine(ample.least_device_bytes(ring) - 1, 1e9)
    made = plan_checkpoint(folder, below, ring=ring, **options)
    least = made.least_device_bytes(ring) + resident * made.staging_bytes
    host_bytes = 0 if host is None else (host + 2) * made.staging_bytes
    machine = Machine(least, 1e9, host_bytes=host_bytes)
    made = plan_checkpoint(folder, machine, ring=ring, **options)
    assert made.head_parts > 0
    assert made.resident_layers == resident
    return made


def streamed(folder, *places, plan=plan_tight, **options):
    """The model of a checkpoint, to be opened within a plan as above."""
    return StreamedModel(folder, plan(folder, *places, **options))


@contextmanager
def metering(folder, *places, **options):
    """The opened model, and a meter that raises above the peak of the plan."""
    twin = streamed(folder, *places, **options)
    with twin, DeviceBudget(twin.plan.device_peak_bytes) as budget:
        twin.charge(budget)
        yield twin, budget


def stored(folder):
    """The tensors of all files of a checkpoint, by full name."""
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def read(store, layer):
    """Type, shape and bytes of the tensors of a layer, by full name."""
    buffer = allocate(store.nbytes(layer))
    store.read_layer(layer, buffer).wait()
    return {
        store.full_name(layer, p.name): (
            p.dtype,
            list(p.shape),
            bytes(buffer[p.start : p.start + p.nbytes]),
        )
        for p in store.placements(layer)
    }


def tokens(seed, batch, n, vocab=VOCAB):
    """Random token ids, (batch, n)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (batch, n), generator=draw)


# Of messages, by the first letters of their roles.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '.' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def give_tokenizer(folder, template=None):
    """One token for each character of a word; with a template it can talk."""
    letters = {"[UNK]": 0} | {chr(code): code for code in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made.chat_template = template
    made.save_pretrained(folder)
    return made


@torch.no_grad()
def agree(twin, model, batch=1, chunks=(9, 1, 1, 5, 1), vocab=VOCAB):
    """Whether a streamed model gives the bits of the resident one, chunk by chunk.

    Without a cache for the first, and with one for all.
    """
    cache, own = twin.new_cache(), twin.new_cache()
    rows = [tokens(chunk, batch, chunk, vocab) for chunk in chunks]
    return torch.equal(
        twin.step(rows[0], None), model(rows[0], use_cache=False).logits
    ) and all(
        torch.equal(twin.step(row, own), model(row, cache=cache, use_cache=True).logits)
        for row in rows
    )


def metered(folder, made):
    """The peak of the extreme steps that a plan admits."""
    with StreamedModel(folder, made) as twin, DeviceBudget() as budget:
        twin.charge(budget)
        keep, new = made.logit_tokens, made.pass_tokens
        twin.step(tokens(0, made.batch, new), None, keep)
        for last, kept in ((new, keep), (1, 1))[: min(2, made.context)]:
            cache = twin.new_cache()
            for at in range(0, made.context - last, new):
                chunk = min(new, made.context - last - at)
                twin.step(tokens(1, made.batch, chunk), cache, 1)
            twin.step(tokens(2, made.batch, last), cache, kept)
            del cache
    return budget.peak_bytes
