"""A block of prompts reads what one reads, and says what transformers says."""

import copy

import pytest
import tiny
import torch

from thesis_lib.common.errors import InvalidInput
from thesis_lib.memory.decode import batch
from thesis_lib.memory.model.spec import Machine
from thesis_lib.memory.offload import offloaded_model
from thesis_lib.memory.offload.architectures import flatten_head
from thesis_lib.memory.offload.measure import DeviceBudget
from thesis_lib.memory.offload.offloaded_model import StreamedModel
from thesis_lib.memory.offload.plan import PlanInfeasible

LENGTHS = [3, 11, 7, 7, 1, 9, 12]
NEW = 6


def prompts():
    return [tiny.tokens(i, 1, n)[0].tolist() for i, n in enumerate(LENGTHS)]


def made_for(folder, sequences):
    """A plan on the smallest device that has room for so many."""
    ample = batch.plan_batches(
        folder, Machine(2**50, 1e9), [*LENGTHS[:sequences], 12], NEW, pass_tokens=5
    )
    streamed = ample.spec.layers - 3  # which a ring of three leaves out
    size = ample.device_peak_bytes - streamed * ample.staging_bytes
    return batch.plan_batches(folder, Machine(size, 1e9), LENGTHS, NEW, pass_tokens=5)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "opt"])
def test_tokens_are_those_of_the_same_padded_block(tmp_path, architecture):
    model = flatten_head(copy.deepcopy(tiny.write(tmp_path, architecture)))
    planned = made_for(tmp_path, 2)
    assert planned.batch >= 3
    with (
        StreamedModel(tmp_path, planned) as streamed,
        DeviceBudget(planned.device_peak_bytes) as budget,
    ):
        streamed.charge(budget)
        own = batch.generate_batches(streamed, prompts(), NEW)
    order = sorted(range(len(LENGTHS)), key=lambda i: -LENGTHS[i])
    for first in range(0, len(order), planned.batch):
        block = order[first : first + planned.batch]
        tokens, mask = batch.pad_left([prompts()[i] for i in block], 0)
        longer = {"prefill_chunk_size": 5} if tokens.shape[1] > 5 else {}
        expected = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            **longer,
        )[:, tokens.shape[1] :]
        assert [own[i] for i in block] == expected.tolist()


def test_the_block_is_the_largest_that_fits(tmp_path):
    tiny.write(tmp_path)
    for sequences in (1, 3):
        planned = made_for(tmp_path, sequences)
        assert planned.batch >= sequences + 1
        if planned.batch < len(LENGTHS):
            with pytest.raises(PlanInfeasible):
                offloaded_model.plan_checkpoint(
                    tmp_path,
                    planned.machine,
                    batch=planned.batch + 1,
                    context=12 + NEW,
                    pass_tokens=5,
                    logit_tokens=1,
                    generating=True,
                    padded=True,
                )
    ample = batch.plan_batches(tmp_path, Machine(2**40, 1e9), LENGTHS, NEW)
    assert ample.batch == len(LENGTHS)
    with pytest.raises(PlanInfeasible, match="needs"):
        batch.plan_batches(tmp_path, Machine(2**12, 1e9), LENGTHS, NEW)


def test_a_pass_over_a_block_reads_what_a_pass_over_one_reads(tmp_path):
    tiny.write(tmp_path)
    planned = made_for(tmp_path, 3)
    read = []
    for sequences in (1, planned.batch):
        with StreamedModel(tmp_path, planned) as streamed:
            with streamed.without_reading():  # nothing is in flight any more
                before = streamed.bytes_read
            batch.generate_batches(streamed, prompts()[1 : sequences + 1], NEW)
            with streamed.without_reading():
                read.append(streamed.bytes_read - before)
    # Prompts of up to eleven tokens take three passes, or as many.
    assert max(read) == min(read)


def test_a_text_that_ends_early_has_no_padding(tmp_path):
    tiny.write(tmp_path)
    with StreamedModel(tmp_path, made_for(tmp_path, 3)) as streamed:
        whole = batch.generate_batches(streamed, prompts(), NEW)
        stop = whole[0][2]
        streamed.model.generation_config.eos_token_id = stop
        cut = batch.generate_batches(streamed, prompts(), NEW)
    for long, short in zip(whole, cut, strict=True):
        end = long.index(stop) + 1 if stop in long else NEW
        assert short == long[:end]


def test_nothing_to_continue_is_refused(tmp_path):
    tiny.write(tmp_path)
    machine = Machine(2**40, 1e9)
    for lengths in ([], [3, 0]):
        with pytest.raises(InvalidInput, match="expected one or more"):
            batch.plan_batches(tmp_path, machine, lengths, NEW)
    with StreamedModel(tmp_path, made_for(tmp_path, 1)) as streamed:
        for texts in ([], [[1], []]):
            with pytest.raises(InvalidInput, match="a token at least in each"):
                batch.generate_batches(streamed, texts, NEW)


def test_padding_is_on_the_left_and_masked():
    tokens, mask = batch.pad_left([[1], [2, 3]], pad=9)
    assert torch.equal(tokens, torch.tensor([[9, 1], [2, 3]]))
    assert torch.equal(mask, torch.tensor([[0, 1], [1, 1]]))
