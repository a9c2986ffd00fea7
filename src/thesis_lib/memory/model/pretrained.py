"""Read the files of a model with transformers, or raise an error.

Configuration, tokenizer and generation settings are files of unknown origin, and
transformers raises arbitrary exceptions for damaged ones. This module, and only around
its own calls, turns them into one sentence.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig
from transformers.utils import logging

from thesis_lib.common.errors import InvalidInput, read_object, require, shown

_MOST_WORDS = 200  # characters of what transformers said


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings; restore them afterwards."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def transformers_reads(what: str, expected: str) -> Iterator[None]:
    """A call of transformers, without its chatter, that depends on a user's file.

    Raises InvalidInput for whatever it raises: `what` went wrong, and what was
    `expected`.
    """
    try:
        with quiet():
            yield
    except InvalidInput:
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        message = "".join(c if c.isprintable() else "?" for c in words)[:_MOST_WORDS]
        raise InvalidInput(
            f"{what} ({type(error).__name__}: {message}): expected {expected}"
        ) from error


def read_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a checkpoint. Raises InvalidInput where none can be read."""
    with transformers_reads(
        f"{folder} has no tokenizer that can be read",
        "the files of one; copy those of the model into the folder",
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def read_text(path: Path | str) -> str:
    """A text to make tokens of. Raises InvalidInput for a file that is not UTF-8."""
    path = Path(path)
    require(path.is_file(), f"text {path} does not exist: expected a UTF-8 file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"text {path} cannot be read ({type(error).__name__}): expected a UTF-8 "
            "file"
        ) from error


def encode(
    tokenizer: Any, text: str, vocab: int | None = None, **options: Any
) -> list[int]:
    """The tokens of a text, as the tokenizer makes them, for a model of `vocab` tokens.

    Raises InvalidInput for a tokenizer that fails, or that knows more tokens.
    """
    with transformers_reads("the tokenizer fails", "one that can encode the text"):
        tokens = tokenizer(text, verbose=False, **options)["input_ids"]
        ids = [int(token) for token in tokens]
    require_known(ids, vocab)
    return ids


def encode_messages(
    tokenizer: Any, messages: Sequence[dict[str, str]], vocab: int | None = None
) -> list[int]:
    """The tokens of a conversation in the model's own template, ready for an answer.

    Each message has a `role` and its `content`. Raises InvalidInput for a tokenizer
    without a template, for messages that it does not take, and as `encode`.
    """
    require(
        getattr(tokenizer, "chat_template", None) is not None,
        "the tokenizer has no chat template: expected a model that was made to talk; "
        "continue a text instead",
    )
    with transformers_reads(
        "the chat template fails", "messages of roles, in an order, that it takes"
    ):
        tokens = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True
        )
        ids = [int(token) for token in tokens["input_ids"]]
    require_known(ids, vocab)
    return ids


def encode_message(tokenizer: Any, text: str, vocab: int | None = None) -> list[int]:
    """The tokens of one message of a user, as `encode_messages` makes them."""
    return encode_messages(tokenizer, [{"role": "user", "content": text}], vocab)


def require_known(tokens: Sequence[int], vocab: int | None) -> None:
    """Reject tokens that a model of `vocab` tokens does not have."""
    least, most = min(tokens, default=0), max(tokens, default=0)
    require(
        least >= 0 and (vocab is None or most < vocab),
        f"the tokenizer makes tokens from {least} to {most} of the text where the "
        f"model knows {vocab}: expected the tokenizer of this model; copy it again",
    )


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, without special ones. Raises InvalidInput as `encode`."""
    with transformers_reads("the tokenizer fails", "one that decodes what it encodes"):
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def read_generation(folder: Path | str, config: Any) -> GenerationConfig:
    """Return the generation settings of a checkpoint, from its files.

    Settings that transformers does not know have no effect there and are left out.
    Raises InvalidInput for a value that its `generate` would choke on, and for a
    setting that needs more than one model with a cache that grows.
    """
    path = Path(folder) / "generation_config.json"
    if path.exists():
        settings = read_object(path, "the generation settings of a checkpoint")
    else:
        path = Path(folder) / "config.json"
        with transformers_reads(f"{path} cannot be used", "settings of generate"):
            settings = GenerationConfig.from_model_config(config).to_dict()
    known = GenerationConfig().to_dict()
    options = {
        name: value
        for name, value in settings.items()
        if name in known and value is not None and name not in _REMARKS
    }
    for name, value in options.items():
        expected, allows = _SETTINGS.get(name, _UNSUPPORTED)
        require(
            allows(value),
            f"{path} sets {name} to {shown(value)}: expected {expected}; remove the "
            "setting or correct it",
        )
    require(
        options.get("num_return_sequences", 1) <= options.get("num_beams", 1),
        f"{path} wants more sequences back than it has beams: expected as many at most",
    )
    with transformers_reads(f"{path} cannot be used", "settings of generate"):
        return GenerationConfig.from_dict(options)


def _is_whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**31


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_whole, value))


_Setting = tuple[str, Callable[[Any], bool]]  # what is expected, and whether it is that
_UNSUPPORTED: _Setting = "nothing, as it is not supported", lambda value: not value
_REMARKS = {"_from_model_config", "transformers_version"}
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {  # what is expected of whom
    "a whole number": (_is_whole,
        "max_length min_length min_new_tokens top_k no_repeat_ngram_size "
        "num_assistant_tokens assistant_lookbehind target_lookbehind"),
    "a positive whole number": (lambda value: _is_whole(value, 1),
        "max_new_tokens num_beams num_return_sequences"),
    "true or false": (lambda value: isinstance(value, bool),
        "do_sample disable_compile renormalize_logits remove_invalid_values"),
    "true": (lambda value: value is True, "use_cache"),
    "true, false or 'never'": (
        lambda value: isinstance(value, bool) or value == "never", "early_stopping"),
    "a cache that grows": (
        lambda value: value in ("dynamic", "hybrid"), "cache_implementation"),
    "a number": (lambda value: _is_number(value, -1e6, 1e6), "length_penalty"),
    "a number from 0 to 1": (lambda value: _is_number(value, 0, 1),
        "top_p min_p typical_p epsilon_cutoff eta_cutoff "
        "assistant_confidence_threshold"),
    "a positive number with a decimal point": (
        lambda value: type(value) is float and 0 < value < 1e6,
        "temperature repetition_penalty"),
    "a token": (lambda value: _is_whole(value, -1),
        "forced_bos_token_id forced_eos_token_id pad_token_id bos_token_id "
        "decoder_start_token_id"),
    "a list of tokens": (_are_tokens, "suppress_tokens begin_suppress_tokens"),
    "a token or a list of tokens": (
        lambda value: _is_whole(value, -1) or _are_tokens(value), "eos_token_id"),
    "lists of tokens": (
        lambda value: isinstance(value, list) and value != []
        and all(map(_are_tokens, value)),
        "bad_words_ids"),
    # Of no effect on one decoder that is given its tokens.
    "0": (lambda value: _is_number(value, 0, 0),
        "diversity_penalty encoder_no_repeat_ngram_size"),
    "1": (lambda value: _is_number(value, 1, 1),
        "encoder_repetition_penalty num_beam_groups guidance_scale"),
    "a word": (lambda value: isinstance(value, str), "num_assistant_tokens_schedule"),
}  # fmt: skip
_SETTINGS: dict[str, _Setting] = {
    name: (expected, allows)
    for expected, (allows, names) in _ALLOWED.items()
    for name in names.split()
}
