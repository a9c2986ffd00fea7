"""Break one line at a time; every break must turn pytest or nbval red.

Works on a copy of the package, never on the checkout: killed at any moment it leaves
nothing broken behind. Run it with `make mutants`; `scripts/mutate.py WORD…` tries those
mutants alone whose name holds one of the words.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One line of the package, what to make of it, and the checks that must see it."""

    name: str
    module: str  # path below src/thesis_lib
    line: str  # stands exactly once in the module
    broken: str
    tests: tuple[str, ...]  # pytest paths, or notebooks for nbval


MUTANTS = [
    Mutant(
        "machine: a disturbed measurement is not repeated",
        "machine.py",
        "if not used.disturbance or len(made) >= tries or spent_s > _PATIENCE_S:",
        "if True:",
        ("tests/test_machine.py",),
    ),
    Mutant(
        "machine: others are never in the way",
        "machine.py",
        "        scarce = self.idle_s < _IDLE_CORES * self.wall_s",
        "        scarce = False",
        ("tests/test_machine.py",),
    ),
    Mutant(
        "results: what was disturbed is published as if it were not",
        "results.py",
        "    _glue(numbers, disturbed=list(disturbances()))",
        "    _glue(numbers)",
        ("tests/test_chapters.py",),
    ),
    Mutant(
        "results: an increase is published as a reduction",
        "results.py",
        "    turned = -1 if float(value) < 0 else 1",
        "    turned = 1",
        ("tests/test_results.py",),
    ),
    Mutant(
        "compare: an unexpected time is believed",
        "compare.py",
        '        if held.verdict.word == "UNEXPECTED" and record is not None:',
        "        if False and record is not None:",
        ("tests/test_staging.py",),
    ),
    Mutant(
        "book: a time in doubt is cited without a mark",
        "book.py",
        'return hit[0] + mark * (hit["name"] in self.doubted.get(chapter, {}))',
        "return hit[0]",
        ("tests/test_staging.py",),
    ),
    Mutant(
        "book: words may contradict the numbers of their page",
        "book.py",
        "        wrong = contradictions(notebook)",
        "        wrong = []",
        ("tests/test_staging.py",),
    ),
    Mutant(
        "speculate: refused proposals stay in the cache",
        "memory/speculate.py",
        "        cache.crop(taken - len(proposed))",
        "        cache.crop(0)",
        ("tests/memory/test_speculate.py",),
    ),
    Mutant(
        "speculate: one slow proposal is believed for ever",
        "memory/speculate.py",
        "FORGET = 0.9",
        "FORGET = 1.0",
        ("tests/memory/test_speculate.py",),
    ),
    Mutant(
        "rates: a ring as long as the model is drained of nothing",
        "memory/rates.py",
        "    return min(ring, layers - 1)",
        "    return ring",
        ("tests/memory/test_rates.py",),
    ),
    Mutant(
        "rowwise: kernels that mix rows are given them all",
        "memory/rowwise.py",
        "            apart = self._mixing[call]",
        "            apart = False",
        ("tests/memory/test_speculate.py",),
    ),
    Mutant(
        "batch: what is written comes in the order of the blocks",
        "memory/batch.py",
        "    return [written[i] for i in range(len(prompts))]",
        "    return [written[i] for i in order]",
        ("tests/memory/test_batch.py",),
    ),
    Mutant(
        "trial: a step is held against the drain after it alone",
        "memory/trial.py",
        "beside = (drain[:-1] + drain[1:]) / 2",
        "beside = drain[1:]",
        ("tests/memory/test_trial.py",),
    ),
    Mutant(
        "confine: who was killed at its limit is said to have ended",
        "memory/confine.py",
        "killed=watch.killed if group is None else group.kills() > 0,",
        "killed=watch.killed,",
        ("tests/memory/test_confine.py",),
    ),
    Mutant(
        "rounding: no error is made good beyond its group",
        "memory/rounding.py",
        "work[:, stop:] -= errors @ given.inverse[start:stop, stop:]",
        "work[:, stop:] -= 0 * errors @ given.inverse[start:stop, stop:]",
        ("tests/memory/test_rounding.py",),
    ),
    Mutant(
        "corrected: a round that made it worse is kept",
        "memory/corrected.py",
        "        if loss >= least:",
        "        if loss >= 2 * least:",
        ("tests/memory/test_corrected.py",),
    ),
    Mutant(
        "fewbits: layers are calibrated on what the dense ones hand them",
        "memory/fewbits.py",
        "        hidden = [block(each) for each in hidden]",
        "        hidden = [_Called(stack(model)[1][number], options[number])(each) "
        "for each in hidden]",
        ("tests/memory/test_fewbits.py",),
    ),
    Mutant(
        "confine: the command starts outside its group",
        "memory/confine.py",
        '_JOIN = \'echo 0 > "$0" && exec "$@"\'',
        "_JOIN = 'exec \"$@\"'",
        ("tests/memory/test_confine.py",),
    ),
    Mutant(
        "measure: the cap of a GPU outlives its run",
        "memory/measure.py",
        "self._cuda.set_per_process_memory_fraction(1.0, self._device)",
        "pass",
        ("tests/memory/test_measure.py",),
    ),
    Mutant(
        "bounds: the chain forgets how long its last job waits",
        "sequencer/bounds.py",
        "end = release[last] + service[last] + _wait(inner + last, least, later)",
        "end = release[last] + service[last]",
        ("tests/sequencer/test_bounds.py",),
    ),
    Mutant(
        "bounds: deadlines that disagree are not relaxed",
        "sequencer/bounds.py",
        "due = max(due, deadline[job])",
        "due = deadline[job]",
        ("tests/sequencer/test_bounds.py",),
    ),
    Mutant(
        "optimum: what nobody foresees is counted as misjudged",
        "sequencer/optimum.py",
        '"misjudged": mean.loc["ours"] - mean.loc["ours-oracle"],',
        '"misjudged": mean.loc["ours"] - mean.loc["search"],',
        ("tests/sequencer/test_optimum.py",),
    ),
    Mutant(
        "clairvoyant: an exclusive lock is granted beside shared ones",
        "sequencer/clairvoyant.py",
        "free_s = max(free_s, locks.shared_s[key])",
        "free_s = max(free_s, locks.exclusive_s[key])",
        ("tests/sequencer/test_clairvoyant.py",),
    ),
    Mutant(
        "clairvoyant: a move forgets that it holds up who comes after",
        "sequencer/clairvoyant.py",
        "if not (began_s <= at_s and until_s >= core_s[core]):",
        "if not (began_s <= at_s):",
        ("tests/sequencer/test_clairvoyant.py",),
    ),
    Mutant(
        "clairvoyant: a window is solved with all its locks shared",
        "sequencer/clairvoyant.py",
        "modes = np.where(keys.exclusive[at], room, 1)",
        "modes = np.where(keys.exclusive[at], 1, 1)",
        ("tests/sequencer/test_clairvoyant.py",),
    ),
    Mutant(
        "clairvoyant: a drop is judged by the log that came after it",
        "sequencer/clairvoyant.py",
        "state.progress[LOGGED] = np.searchsorted(decided_s, now_s)",
        "state.progress[LOGGED] = len(log)",
        ("tests/sequencer/test_clairvoyant.py",),
    ),
    Mutant(
        "policy: the safe are called critical",
        "sequencer/policies.py",
        "critical = np.abs(forecast.finish_s - batch.deadline_s) < band_s",
        "critical = np.abs(forecast.finish_s - batch.deadline_s) > band_s",
        ("tests/sequencer/test_policies.py",),
    ),
    Mutant(
        "policy: compiled, the safe are called critical, as the book sees it",
        "sequencer/policies.py",
        "if (abs(finish_s[at] - deadline_s[at]) < code.band_s) == critical:",
        "if (abs(finish_s[at] - deadline_s[at]) > code.band_s) == critical:",
        ("notebooks/03_enhanced_sequencer.ipynb",),
    ),
    Mutant(
        "estimator: boosted trees forget the level that they correct",
        "sequencer/estimator.py",
        "return np.exp(self.centre + trees.predict(_features(batch, self)))",
        "return np.exp(trees.predict(_features(batch, self)))",
        ("tests/sequencer/test_estimator.py",),
    ),
    Mutant(
        "estimator, as the book sees it",
        "sequencer/estimator.py",
        "return np.exp(self.centre + trees.predict(_features(batch, self)))",
        "return np.exp(trees.predict(_features(batch, self)))",
        ("notebooks/02_background.ipynb",),
    ),
    Mutant(
        "field: what nobody verified may have a value",
        "field.py",
        'cell.status == VERIFIED or cell.value == "",',
        "True,",
        ("tests/test_field.py",),
    ),
    Mutant(
        "field: what nobody verified is shown as a no",
        "field.py",
        "return VALUES[self.value] if self.status == VERIFIED else UNVERIFIED",
        'return VALUES[self.value or "no"]',
        ("tests/test_field.py",),
    ),
    Mutant(
        "field: what nobody verified is shown as a no, as the book sees it",
        "field.py",
        "return VALUES[self.value] if self.status == VERIFIED else UNVERIFIED",
        'return VALUES[self.value or "no"]',
        ("notebooks/04_evaluation_ml_for_db.ipynb",),
    ),
    Mutant(
        "field: a part that others have does not count against ours",
        "field.py",
        'own == "yes" and not {"yes", "partly"} & set(row)',
        'own == "yes" and "yes" not in row',
        ("tests/test_field.py",),
    ),
    Mutant(
        "schedule: a buffer receives while its layer computes",
        "memory/schedule.py",
        "free_s[buffer] = end_s",
        "free_s[buffer] = starts_s",
        ("tests/memory/test_schedule.py",),
    ),
    Mutant(
        "records: a run on a processor is told as one on a GPU",
        "memory/records.py",
        'if record is None or record["device"] != "cuda":',
        "if record is None:",
        ("tests/memory/test_records.py",),
    ),
    Mutant(
        "figures: the rows of the ring are its passes",
        "figures.py",
        "row = visit.buffer if visit.buffer >= 0 else buffers",
        "row = visit.step if visit.buffer >= 0 else buffers",
        ("tests/test_figures.py",),
    ),
    Mutant(
        "cost: what a machine cannot make costs no more",
        "memory/cost.py",
        " if bill.most_tokens > other.most_tokens else math.inf",
        "",
        ("tests/memory/test_cost.py",),
    ),
    Mutant(
        "cost: a fast rate is a dear one",
        "memory/cost.py",
        "return Interval(cost(rate.value), cost(rate.high), cost(rate.low))",
        "return Interval(cost(rate.value), cost(rate.low), cost(rate.high))",
        ("tests/memory/test_cost.py",),
    ),
    Mutant(
        "deployment: electricity is paid for idle hours",
        "memory/deployment.py",
        '"owned_usd": (capital_usd + energy_usd) * million_h,',
        '"owned_usd": (capital_usd + energy_usd / values["utilisation"]) * million_h,',
        ("tests/memory/test_deployment.py",),
    ),
    Mutant(
        "sensitivity: the smallest bar is on top",
        "memory/sensitivity.py",
        "return sorted(bars, key=lambda bar: bar.swing, reverse=True)",
        "return sorted(bars, key=lambda bar: bar.swing)",
        ("tests/memory/test_sensitivity.py",),
    ),
    Mutant(
        "published: packets have no headers",
        "memory/published.py",
        "return self.raw_bytes_per_s * PAYLOAD_BYTES / packet",
        "return self.raw_bytes_per_s",
        ("tests/memory/test_published.py",),
    ),
    Mutant(
        "published: the pass over the prompt is a step like any other",
        "memory/published.py",
        "first_s = made.step_s(row.batch * max(1, row.prompt))",
        "first_s = made.step_s(row.batch)",
        ("tests/memory/test_published.py",),
    ),
    Mutant(
        "trees: what equals a threshold goes to the other side",
        "sequencer/trees.py",
        "at = lower[at] + (features[feature[at]] > number[at])",
        "at = lower[at] + (features[feature[at]] >= number[at])",
        ("tests/sequencer/test_trees.py",),
    ),
    Mutant(
        "trees: forests compare in double precision",
        "sequencer/trees.py",
        "return features.astype(np.float32).astype(np.float64)",
        "return features.astype(np.float64)",
        ("tests/sequencer/test_trees.py",),
    ),
    Mutant(
        "trees: a missing value goes its way",
        "sequencer/trees.py",
        "if not np.isfinite(known):",
        "if False:",
        ("tests/sequencer/test_trees.py",),
    ),
    Mutant(
        "model file: an altered number is read",
        "sequencer/modelfile.py",
        'sha256 == _content_hash({"version": version, **header}, arrays),',
        "True,",
        ("tests/sequencer/test_modelfile.py",),
    ),
    Mutant(
        "model file: the paths through trees are not checked",
        "sequencer/trees.py",
        "bool(((below > node[inner]) & (below < m - 1)).all()),",
        "True,",
        ("tests/sequencer/test_modelfile.py",),
    ),
    Mutant(
        "calibration: the level itself instead of its rank",
        "sequencer/calibration.py",
        "rank = int(np.ceil(level * (len(scores) + 1) - 1e-9))",
        "rank = int(np.ceil(level * (len(scores) - 1)))",
        ("tests/sequencer/test_calibration.py",),
    ),
    Mutant(
        "calibration: a tracked bound knows a commit before it happens",
        "sequencer/calibration.py",
        "while seen < len(scores) and known_s[by_known[seen]] <= asked_s[i]:",
        "while seen < len(scores) and asked_s[by_known[seen]] < asked_s[i]:",
        ("tests/sequencer/test_calibration.py",),
    ),
    Mutant(
        "estimator: an aim that moves nothing",
        "sequencer/estimator.py",
        "self.factor = float(average(ratios))",
        "self.factor = 1.0",
        ("tests/sequencer/test_estimator.py",),
    ),
    Mutant(
        "estimator: features of another name are taken",
        "sequencer/estimator.py",
        "if batch.feature_names != names:",
        "if len(batch.feature_names) != len(names):",
        ("tests/sequencer/test_modelfile.py",),
    ),
    Mutant(
        "engine: replicas share one database",
        "sequencer/engine.py",
        'copy = loaded[place].copy(f"replica-{number}")',
        "copy = loaded[place]",
        ("tests/sequencer/test_engine.py",),
    ),
    Mutant(
        "engine: a database of another seed serves a replica",
        "sequencer/engine.py",
        "place = replica.engine, log.scale, log.seed",
        "place = replica.engine, log.scale",
        ("tests/sequencer/test_engine.py",),
    ),
    Mutant(
        "engine: a run to be killed goes on",
        "sequencer/engine.py",
        "if commands.position == after:",
        "if commands.position > after:",
        ("tests/sequencer/test_engine.py",),
    ),
    Mutant(
        "accuracy: the least q-error has one tail",
        "sequencer/accuracy.py",
        "return exp(sigma * NormalDist().inv_cdf(1 - share / 2))",
        "return exp(sigma * NormalDist().inv_cdf(1 - share))",
        ("tests/sequencer/test_accuracy.py",),
    ),
    Mutant(
        "accuracy: latency bounds are calibrated on what is still to come",
        "sequencer/accuracy.py",
        "past &= history.finish_s <= begins_s",
        "past &= history.finish_s < np.inf",
        ("tests/sequencer/test_accuracy.py",),
    ),
    Mutant(
        "accuracy: latency bounds of all types follow one",
        "sequencer/accuracy.py",
        "trace.kind[judged], start, level, step, least,",
        "0 * trace.kind[judged], start, level, step, least,",
        ("tests/sequencer/test_accuracy.py",),
    ),
    Mutant(
        "accuracy: errors of a unit are counted with their sign",
        "sequencer/accuracy.py",
        "unit: np.sum((measured_s[unit] - predicted_s[unit]) ** 2) for unit in taking",
        "unit: abs(np.sum(measured_s[unit] - predicted_s[unit])) for unit in taking",
        ("tests/sequencer/test_accuracy.py",),
    ),
    Mutant(
        "accuracy: a type of which nothing was kept is forgotten",
        "sequencer/accuracy.py",
        "name: 100 * (1 - after.pop(name, 0) / int(of.sum()))",
        "name: 100 * (1 - after.pop(name, int(of.sum())) / int(of.sum()))",
        ("tests/sequencer/test_accuracy.py",),
    ),
    Mutant(
        "accuracy: the truth over its prediction",
        "sequencer/accuracy.py",
        "name: 100 * guess_s[of].sum() / trace.service_s[of].sum()",
        "name: 100 * trace.service_s[of].sum() / guess_s[of].sum()",
        ("tests/sequencer/test_accuracy.py",),
    ),
    Mutant(
        "estimator: only one of the two tails is cut",
        "sequencer/estimator.py",
        "kept = np.abs(service_s - service_s.mean()) <= limit_s",
        "kept = service_s - service_s.mean() <= limit_s",
        ("tests/sequencer/test_estimator.py",),
    ),
    Mutant(
        "pareto: who is beaten in one quantity alone is of the front",
        "memory/pareto.py",
        "better = (costs[:, None] < costs[None]).any(axis=-1)",
        "better = (costs[:, None] < costs[None]).all(axis=-1)",
        ("tests/memory/test_pareto_record.py",),
    ),
    Mutant(
        "pareto: one who wins on one text is told as the winner",
        "memory/pareto.py",
        "beating = these if beating is None else beating & these",
        "beating = these if beating is None else beating | these",
        ("tests/memory/test_pareto_record.py",),
    ),
    Mutant(
        "low rank: the whitening is left out",
        "memory/lowrank.py",
        "left, values, right = _fast_svd(matrix @ spread)",
        "left, values, right = _fast_svd(matrix)",
        ("tests/memory/test_lowrank.py",),
    ),
    Mutant(
        "allocation: a matrix never stays dense",
        "memory/allocation.py",
        "return np.append(single[: last - 1], jump[last - 1]), last",
        "return single[: last - 1], last",
        ("tests/memory/test_allocation.py",),
    ),
    Mutant(
        "low rank: a layer is calibrated on inputs that it will not see",
        "memory/refine.py",
        "x_seen = blocks.inputs(number, layers[1], seen, group[0])",
        "x_seen = x",
        ("tests/memory/test_refine.py",),
    ),
    Mutant(
        "factors: a step is rehearsed with the ranks of one layer for all",
        "memory/rehearsal.py",
        "short.factor_ranks = [largest_ranks(ranks)] * length",
        "short.factor_ranks = list(ranks[-length:])",
        ("tests/memory/test_factored.py",),
    ),
    Mutant(
        "quantiser: one level too many",
        "memory/quantise.py",
        "step = largest / (2 ** (bits - 1) - 1)",
        "step = largest / 2 ** (bits - 1)",
        ("tests/memory/test_quantise.py",),
    ),
    Mutant(
        "ring: the buffer is refilled with the wrong layer",
        "memory/ring.py",
        "self._refill(at + len(self.buffers), buffer)",
        "self._refill(at + len(self.buffers) + 1, buffer)",
        ("tests/memory/test_ring.py",),
    ),
    Mutant(
        "ring, as the book sees it",
        "memory/ring.py",
        "self._refill(at + len(self.buffers), buffer)",
        "self._refill(at + len(self.buffers) + 1, buffer)",
        ("notebooks/06_evaluation_system_for_ml.ipynb",),
    ),
    Mutant(
        "ring: a layer is lent before it has arrived",
        "memory/ring.py",
        "        ticket.wait()\n        yield buffer",
        "        yield buffer",
        ("tests/memory/test_ring.py",),
    ),
    Mutant(
        "rehearsal: the first layer stands for all",
        "memory/rehearsal.py",
        "while length < n and set(types[-length:][1:]) != set(types):",
        "while length < n and set(types[-length:]) != set(types):",
        ("tests/memory/test_rehearsal.py",),
    ),
    Mutant(
        "rehearsal: a window is counted as what it shows",
        "memory/rehearsal.py",
        "value.untyped_storage().nbytes()",
        "value.nbytes",
        ("tests/memory/test_rehearsal.py",),
    ),
    Mutant(
        "rehearsal: trials of kernels and verified passes hold nothing",
        "memory/rehearsal.py",
        "        rests += stage.verified(counts)",
        "        stage.verified(counts)",
        ("tests/memory/test_speculate.py",),
    ),
    Mutant(
        "spec: frequencies that the text changes are streamed",
        "memory/spec.py",
        "            kind in _ROPES,",
        "            True,",
        ("tests/memory/test_architectures.py",),
    ),
    Mutant(
        "stream: what is half written is lost at the end of the context",
        "memory/stream.py",
        "        self._require_room(input_ids.shape[1], options)\n",
        "",
        ("tests/memory/test_stream.py",),
    ),
    Mutant(
        "stream: weights are opened before the family is known",
        "memory/stream.py",
        "    spec = ModelSpec.from_config(folder)\n"
        "    with SafetensorsStore(folder) as store:",
        "    with SafetensorsStore(folder) as store:\n"
        "        spec = ModelSpec.from_config(folder)",
        ("tests/memory/test_architectures.py",),
    ),
    Mutant(
        "rates: a geometry computes in no time",
        "memory/rates.py",
        "                weight_bytes_per_s=card.memory_bytes_per_s,",
        "                weight_bytes_per_s=math.inf,",
        ("tests/memory/test_plan.py",),
    ),
    Mutant(
        "deployment: the command takes the link of the data sheet",
        "memory/deployment.py",
        "link_bytes_per_s or assumed_link(card)",
        "link_bytes_per_s or card.link_bytes_per_s",
        ("tests/memory/test_deployment.py",),
    ),
    Mutant(
        "deployment: the rate of any machine is that of the owned one",
        "memory/deployment.py",
        "None if is_owned else math.nan",
        "None",
        ("tests/memory/test_deployment.py",),
    ),
    Mutant(
        "compress: one text stands for all",
        "memory/compress.py",
        'data_folder() / "text" / f"{text}.txt"',
        'data_folder() / "text" / "jargon.txt"',
        ("tests/memory/test_compress.py",),
    ),
    Mutant(
        "rehearsal: the choice of a token leaves nothing behind",
        "memory/rehearsal.py",
        "return _choose(logits, run) if new == 1 else (logits,)",
        "return ()",
        ("tests/memory/test_rehearsal.py",),
    ),
    Mutant(
        "transport: a layer from the disk is copied before it has come",
        "memory/transport.py",
        "return _Filled(bounce, self._store.read_layer(layer, bounce).wait())",
        "self._store.read_layer(layer, bounce)\n"
        "            return _Filled(bounce, (0.0, 0.0))",
        ("tests/memory/test_architectures.py", "-k", "llama"),
    ),
    Mutant(
        "stream: an interrupted pass goes on where it stopped",
        "memory/stream.py",
        "if not ring.at_start and not self._still:\n                ring.rewind()",
        "if False:\n                ring.rewind()",
        ("tests/memory/test_stream.py", "-k", "interrupted"),
    ),
    Mutant(
        "store: a checksum is recorded but not compared",
        "memory/store.py",
        "if checksum(content).hexdigest() != expected:",
        "if not checksum(content).hexdigest():",
        ("tests/memory/test_store.py",),
    ),
    Mutant(
        "store: a linked layer keeps the number of its origin",
        "memory/store.py",
        "return renumbered(name, number)",
        "return renumbered(name, layer)",
        ("tests/memory/test_synth.py",),
    ),
    Mutant(
        "packed: the upper half of a byte holds the next row",
        "memory/packed.py",
        "lower, upper = nibbles[first + row], nibbles[first + row + 16]",
        "lower, upper = nibbles[first + row], nibbles[first + row + 1]",
        ("tests/memory/test_packed.py",),
    ),
    Mutant(
        "bits: ties are rounded away from zero",
        "memory/bits.py",
        "np.uint16((word + np.uint32(0x7FFF) + odd) >> np.uint32(16))",
        "np.uint16((word + np.uint32(0x8000)) >> np.uint32(16))",
        ("tests/memory/test_bits.py",),
    ),
    Mutant(
        "bits: a correction stops at the last four components",
        "memory/bits.py",
        "    for k in range(whole, len(left)):",
        "    for k in range(whole, len(left) - 1):",
        ("tests/memory/test_bits.py",),
    ),
    Mutant(
        "lossless: a chunk is decoded where its code still lies",
        "memory/lossless.py",
        "            np.copyto(coded, self._buffer[read : read + size])",
        "            coded = self._buffer[read : read + size]",
        ("tests/memory/test_lossless.py",),
    ),
    Mutant(
        "lossless: a code that was altered is not noticed",
        "memory/store.py",
        "            self._compare(extent.file, digest.hexdigest())",
        "            pass",
        ("tests/memory/test_coded.py",),
    ),
    Mutant(
        "lossless: the second of two rare exponents is the first",
        "memory/lossless.py",
        "code = np.intp(rare[n // 2]) >> 4 * (n % 2) & 15",
        "code = np.intp(rare[n // 2]) & 15",
        ("tests/memory/test_lossless.py",),
    ),
    Mutant(
        "plan: decoding takes no time",
        "memory/plan.py",
        "return max(disk, link, self.decode_s())",
        "return max(disk, link)",
        ("tests/memory/test_coded.py",),
    ),
    Mutant(
        "synth: a tensor depends on the threads that draw it",
        "memory/synth.py",
        "draw = np.random.Generator(np.random.SFC64([*seed, block]))",
        "draw = np.random.Generator(np.random.SFC64([*seed, block, _THREADS]))",
        ("tests/memory/test_synth.py",),
    ),
    Mutant(
        "lock table: a reader overtakes a waiting writer",
        "sequencer/locktable.py",
        "if head[key] == NONE and (",
        "if True and (",
        ("tests/sequencer/test_locktable.py",),
    ),
    Mutant(
        "simulator: a dispatch precedes a commit of the same time",
        "sequencer/kernel.py",
        "if commit_s == now_s:",
        "if commit_s == now_s and commit_s < due_s:",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "replica: a write forgets what its transaction read",
        "sequencer/replica.py",
        "value = _mix(value ^ state[keys[request]])",
        "value = _mix(value ^ np.uint64(keys[request]))",
        ("tests/sequencer/test_replica.py",),
    ),
    Mutant(
        "replica: two workers disagree when a reader overtakes a writer",
        "sequencer/locktable.py",
        "if head[key] == NONE and (",
        "if True and (",
        ("tests/sequencer/test_replica.py",),
    ),
    Mutant(
        "arrivals: a modulated process always begins in its first state",
        "sequencer/workload.py",
        "first = int(rng.random() * means_s.sum() >= means_s[0])",
        "first = 0",
        ("tests/sequencer/test_workload.py",),
    ),
    Mutant(
        "simulator: service times a hundredth too long",
        "sequencer/kernel.py",
        "ends_s[core] = now_s + busy_s[i]",
        "ends_s[core] = now_s + 1.01 * busy_s[i]",
        ("tests/sequencer/test_theory.py",),
    ),
    Mutant(
        "simulator: a batch leaves out what arrives as it is taken",
        "sequencer/kernel.py",
        "while last < upto and arrival_s[last] + setting.read_s <= now_s:",
        "while last < upto and arrival_s[last] + setting.read_s < now_s:",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "simulator: a dropped client of a closed loop never comes back",
        "sequencer/kernel.py",
        "_submit(front, len(dropped), now_s + setting.think_s)",
        "_submit(front, 0, now_s + setting.think_s)",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "shadow: a running transaction starts over at every forecast",
        "sequencer/shadow.py",
        "ends_s[core] = max(now_s, start_s[i] + estimated_s[i])",
        "ends_s[core] = now_s + estimated_s[i]",
        ("tests/sequencer/test_shadow.py",),
    ),
    Mutant(
        "shadow: a peek leaves ghosts behind",
        "sequencer/shadow.py",
        "columns = (*memory.ends_s, *memory.ghosts_s)",
        "columns = (*memory.ends_s, *memory.ends_s)",
        ("tests/sequencer/test_shadow.py",),
    ),
    Mutant(
        "policy: a capped queue forgets what is in flight",
        "sequencer/policies.py",
        "or (in_flight + admitted + 1) * control[TOTAL] <= room_s * control[SEEN]",
        "or (admitted + 1) * control[TOTAL] <= room_s * control[SEEN]",
        ("tests/sequencer/test_policies.py",),
    ),
    Mutant(
        "policy: codel drops at one pace",
        "sequencer/policies.py",
        "control[NEXT] += interval_s / sqrt(control[COUNT])",
        "control[NEXT] += interval_s",
        ("tests/sequencer/test_policies.py",),
    ),
    Mutant(
        "policy: compiled, least slack is earliest deadline",
        "sequencer/policies.py",
        "latest_s = deadline_s - by if code.kind == SLACK else by",
        "latest_s = deadline_s if code.kind == SLACK else by",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "misestimate: a swap among one type",
        "sequencer/misestimate.py",
        "differ = np.flatnonzero(kind[one] != kind[other])",
        "differ = np.flatnonzero(kind[one] == kind[other])",
        ("tests/sequencer/test_misestimate.py",),
    ),
    Mutant(
        "misestimate: what is stale is fresh",
        "sequencer/misestimate.py",
        "estimated_s=seen.estimated_s * slowness(at_s - lag_s, depth, period_s),",
        "estimated_s=seen.estimated_s * slowness(at_s, depth, period_s),",
        ("tests/sequencer/test_misestimate.py",),
    ),
    Mutant(
        "robustness: recovered is what is less bad than before",
        "sequencer/robustness.py",
        "within = after & (made <= made[before].mean() + tolerance)",
        "within = after & (made <= made[before].mean() + 2 * tolerance)",
        ("tests/sequencer/test_robustness.py",),
    ),
    Mutant(
        "report: a drop costs nothing",
        "sequencer/report.py",
        "cost=float(np.where(history.dropped[rows], 1.0, cost).mean()),",
        "cost=float(np.where(history.dropped[rows], 0.0, cost).mean()),",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "report: every type has the objective of the first",
        "sequencer/report.py",
        "slo_s = np.array(self.objectives_s)[trace.kind]",
        "slo_s = np.array(self.objectives_s)[0 * trace.kind]",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "pricing: inserts are free",
        "sequencer/pricing.py",
        "return each[0] + records @ each[1:]",
        "return each[0] + records[:, :2] @ each[1:3]",
        ("tests/sequencer/test_pricing.py",),
    ),
    Mutant(
        "policy: compiled, the hopeless come first",
        "sequencer/dispatch.py",
        'return by_key[np.argsort(rank[by_key], kind="mergesort")]',
        'return by_key[np.argsort(-rank[by_key], kind="mergesort")]',
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "report: rates of whatever load is best",
        "sequencer/report.py",
        "(place, label): table(made, name)[load] / saturation_per_s[place]",
        "(place, label): table(made, name).max(axis=1) / saturation_per_s[place]",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "report: a sequencer that takes no time",
        "sequencer/report.py",
        "replace(cell, delays=replace(cell.delays, sequencer_s=works_s)),",
        "cell,",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "report: the goal of a decision is its mean alone",
        "sequencer/report.py",
        '& (p99_us["compiled"] <= 1e6 * COST_P99_S)',
        "& True",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "ours: the price never falls",
        "sequencer/dispatch.py",
        "control[PRICE_S] *= exp(-terms.step)",
        "control[PRICE_S] *= 1.0",
        ("tests/sequencer/test_dispatch.py",),
    ),
    Mutant(
        "ours: nobody looks at a reservation",
        "sequencer/dispatch.py",
        "end_s > -free_at(keys, closed_s, i, -np.inf):",
        "end_s > np.inf:",
        ("tests/sequencer/test_dispatch.py",),
    ),
    Mutant(
        "ours: who is above the price goes first",
        "sequencer/dispatch.py",
        "rank[at] = 2 * refused[at] + above[at]",
        "rank[at] = 2 * refused[at] - above[at]",
        ("tests/sequencer/test_dispatch.py",),
    ),
    Mutant(
        "ours: nobody is sent ahead of a free core",
        "sequencer/dispatch.py",
        "ahead_s = min(model.lag_s, terms.patience * typical_s)",
        "ahead_s = 0.0",
        ("tests/sequencer/test_simulate.py", "-k", "ours_equals"),
    ),
    Mutant(
        "ours: the favoured group weighs more",
        "sequencer/dispatch.py",
        "excess = shares[group] - shares.min() - terms.gap",
        "excess = shares.max() - shares[group] - terms.gap",
        ("tests/sequencer/test_dispatch.py",),
    ),
    Mutant(
        "ours: nobody who is doubted is tried",
        "sequencer/calibration.py",
        "online.probes[i] = due or online.fits[at] >= least_p",
        "online.probes[i] = False",
        ("tests/sequencer/test_dispatch.py",),
    ),
    Mutant(
        "ours: a heap forgets who came first",
        "sequencer/dispatch.py",
        "key[one] == key[other] and one < other",
        "key[one] == key[other] and one > other",
        ("tests/sequencer/test_dispatch.py",),
    ),
    Mutant(
        "report: a bias that nobody sees",
        "sequencer/report.py",
        "return bias * estimate(trace, seed)",
        "return estimate(trace, seed)",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "ours: calibration forgets the slope",
        "sequencer/calibration.py",
        "moments[SLOPE] = min(max(slope, 0.0), STEEPEST)",
        "moments[SLOPE] = 1.0",
        ("tests/sequencer/test_dispatch.py",),
    ),
    Mutant(
        "ours: what has been released holds no core",
        "sequencer/shadow.py",
        "end_s = core_s[core] = begin_s + estimated_s[i]",
        "end_s = begin_s + estimated_s[i]",
        ("tests/sequencer/test_simulate.py", "-k", "ours_equals"),
    ),
    Mutant(
        "goals: the mean of an interval reaches a goal",
        "sequencer/goals.py",
        '"reached": fewer.low >= goal.reduction[place],',
        '"reached": fewer.value >= goal.reduction[place],',
        ("tests/sequencer/test_goals.py",),
    ),
    Mutant(
        "policy: compiled, late-demote demotes nobody",
        "sequencer/policies.py",
        "rank[edd[loses]] = 2",
        "rank[edd[loses]] = 0",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "simulate: compiled, what is held forgets its order",
        "sequencer/simulate.py",
        "held = np.sort(np.concatenate((order[room:], hold)))",
        "held = np.concatenate((order[room:], hold))",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "ablation: a defect is put back into its neighbour",
        "sequencer/report.py",
        "estimated_s[defects.cut_tail]",
        "estimated_s[not defects.cut_tail]",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "trace: a file that was altered is read",
        "sequencer/trace.py",
        "sha256 in (None, _content_hash(trace)),",
        "True,",
        ("tests/sequencer/test_trace.py",),
    ),
    Mutant(
        "checks: another row is blamed",
        "checks.py",
        "row = int(np.argmin(good))",
        "row = int(np.argmax(good))",
        ("tests/sequencer/test_trace.py",),
    ),
    Mutant(
        "agreement: a refused client counts as served at once",
        "sequencer/sla.py",
        "np.where(np.isnan(latency_s), np.inf, latency_s)",
        "np.nan_to_num(latency_s)",
        ("tests/sequencer/test_sla.py",),
    ),
    Mutant(
        "run: a notebook that is not the one of its record counts as fresh",
        "chapters.py",
        "same_machine and whole else None",
        "same_machine else None",
        ("tests/test_interruption.py",),
    ),
    Mutant(
        "run: the lock is not waited for",
        "chapters.py",
        "        on_wait()\n        lock.acquire()",
        "        on_wait()",
        ("tests/test_interruption.py",),
    ),
    Mutant(
        "claims: an exact claim is held to a few digits",
        "claims.py",
        "good = value == reference",
        "good = str(value)[:6] == str(reference)[:6]",
        ("tests/test_claims.py",),
    ),
    Mutant(
        "workload: draws keep the last bit of a library",
        "sequencer/workload.py",
        "return np.rint(draws * 2.0**24) / 2.0**24",
        "return draws",
        ("tests/sequencer/test_workload.py",),
    ),
    Mutant(
        "workload: popularity is rounded down",
        "sequencer/workload.py",
        "total += round(exact.multiply(weight, ZIPF_UNIT))",
        "total += int(exact.multiply(weight, ZIPF_UNIT))",
        ("tests/sequencer/test_workload.py",),
    ),
    Mutant(
        "workload: files stay locked where a database has many writers",
        "sequencer/workload.py",
        "kept = (keys.keys < files.start) | (keys.keys >= files.stop)",
        "kept = keys.keys >= 0",
        ("tests/sequencer/test_workload.py",),
    ),
    Mutant(
        "workload: YCSB shares the records that it writes",
        "sequencer/workload.py",
        'written = {o.record for o in t.operations if o.what != "read"}',
        "written = set()",
        ("tests/sequencer/test_storage.py", "-k", "overlap"),
    ),
    Mutant(
        "features: a record is as popular as the least popular of its transaction",
        "sequencer/features.py",
        "len(written), min(records), len(t.files)]",
        "len(written), max(records), len(t.files)]",
        ("tests/sequencer/test_features.py",),
    ),
    Mutant(
        "live scheduler: what waits for a lock is handed over",
        "sequencer/pipeline.py",
        "if book(state.table, i):",
        "if book(state.table, i) or True:",
        ("tests/sequencer/test_pipeline.py", "-k", "granted"),
    ),
    Mutant(
        "live sequencer: a client is answered before anybody heard of the commit",
        "sequencer/pipeline.py",
        "finish_s=run.notified_s[rows],",
        "finish_s=run.finish_s[rows],",
        ("tests/sequencer/test_pipeline.py",),
    ),
    Mutant(
        "live sequencer: back-pressure counts one too few",
        "sequencer/pipeline.py",
        "room = policy.in_flight - scheduler.in_flight",
        "room = policy.in_flight - scheduler.in_flight + 1",
        ("tests/sequencer/test_pipeline.py", "-k", "back_pressure"),
    ),
    Mutant(
        "middleware: what waits for a lock counts as waiting in the pipe",
        "sequencer/middleware.py",
        "queued = workers_s >= run.granted_s[ids]",
        "queued = workers_s <= run.granted_s[ids]",
        ("tests/sequencer/test_middleware.py",),
    ),
    Mutant(
        "simulator: locks are free with their core",
        "sequencer/kernel.py",
        "if release_s == 0:",
        "if release_s >= 0:",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "shadow: what is decided on overtakes the log",
        "sequencer/shadow.py",
        "return max(due_s, world.dispatch_s[logged - 1]) if logged else due_s",
        "return due_s",
        ("tests/sequencer/test_simulate.py",),
    ),
    Mutant(
        "ranked alike: the other way round",
        "sequencer/report.py",
        "alike = apart[0] * np.diff(pair[model].to_numpy(np.float64))[0] > 0",
        "alike = apart[0] * np.diff(pair[model].to_numpy(np.float64))[0] < 0",
        ("tests/sequencer/test_report.py",),
    ),
    Mutant(
        "middleware: readers are taken to wait for readers",
        "sequencer/middleware.py",
        "read_s[key] = max(read_s[key], finish_s[i])",
        "wrote_s[key] = max(wrote_s[key], finish_s[i])",
        ("tests/sequencer/test_middleware.py",),
    ),
    Mutant(
        "command log: an altered record is executed",
        "sequencer/logfile.py",
        "require(crc32(found) == checksum, altered)",
        "require(length == len(found), altered)",
        ("tests/sequencer/test_logfile.py", "-k", "altered"),
    ),
    Mutant(
        "command log: a missing record is not missed",
        "sequencer/logfile.py",
        "require(sealed and first == position, altered)",
        "require(sealed, altered)",
        ("tests/sequencer/test_logfile.py", "-k", "missing"),
    ),
    Mutant(
        "workers: a rolled back transaction counts as committed",
        "sequencer/pipeline.py",
        'self.committed[ids] = records["outcome"] == DID_COMMIT',
        'self.committed[ids] = records["outcome"] <= DID_COMMIT',
        ("tests/sequencer/test_engine.py", "-k", "roll_back"),
    ),
    Mutant(
        "storage: the digest does not see the table of a row",
        "sequencer/storage.py",
        'state.update(f"{table}\\n".encode())',
        "pass",
        ("tests/sequencer/test_storage.py",),
    ),
    Mutant(
        "storage: a stale reconnaissance is executed",
        "sequencer/storage.py",
        "if found != t.customer:",
        "if False:",
        ("tests/sequencer/test_storage.py",),
    ),
    Mutant(
        "postgres: a stale reconnaissance is executed",
        "sequencer/postgres.py",
        "IF found IS DISTINCT FROM cust THEN",
        "IF false THEN",
        ("tests/sequencer/test_storage.py",),
    ),
    Mutant(
        "postgres: the stock of an item falls below ten",
        "sequencer/postgres.py",
        "CASE WHEN s_quantity >= quantities[n] + 10 THEN 0 ELSE 91 END",
        "CASE WHEN s_quantity >= quantities[n] THEN 0 ELSE 91 END",
        ("tests/sequencer/test_storage.py",),
    ),
    Mutant(
        "postgres: databases stay behind on a server of the user's",
        "sequencer/postgres.py",
        'server.execute(_naming("DROP DATABASE {} WITH (FORCE)", name))',
        "pass",
        ("tests/sequencer/test_postgres.py",),
    ),
    Mutant(
        "postgres: a refusal shows the password",
        "sequencer/postgres.py",
        "dsn: str = field(repr=False)  # it may hold a password",
        "dsn: str",
        ("tests/sequencer/test_postgres.py",),
    ),
    Mutant(
        "compare: the interval of a difference is too narrow",
        "compare.py",
        "return Quantity(value, ends[0] - ends[3], ends[1] - ends[2])",
        "return Quantity(value, ends[0] - ends[2], ends[1] - ends[3])",
        ("tests/test_compare.py",),
    ),
    Mutant(
        "compare: values of other parameters are held against each other",
        "compare.py",
        "return other_parameters(mine, theirs)",
        'return ""',
        ("tests/test_compare.py",),
    ),
    Mutant(
        "compare: a disk read in another way predicts times",
        "compare.py",
        'if sides[0].get("drain_how") != sides[1].get("drain_how"):',
        "if False:",
        ("tests/test_compare.py",),
    ),
    Mutant(
        "claims: a time rises with the rate that it follows",
        "claims.py",
        "return here / there if claim.inverse else there / here",
        "return there / here if claim.inverse else here / there",
        ("tests/test_compare.py",),
    ),
    Mutant(
        "book: a notebook of another run is rendered",
        "book.py",
        "content_hash(notebook) == record.notebook_sha256,",
        "True,",
        ("tests/test_staging.py",),
    ),
    Mutant(
        "book: two renderings write over each other",
        "book.py",
        "with claimed(output, on_wait):",
        "with storage(output):",
        ("tests/test_staging.py",),
    ),
    Mutant(
        "intervals: another level than the text states",
        "stats.py",
        "LEVEL = 0.95  # of every interval in the book",
        "LEVEL = 0.9  # of every interval in the book",
        ("tests/test_prose.py",),
    ),
    Mutant(
        "sweep: a notebook that is not the one of its record counts as finished",
        "sweep.py",
        "if whole and record.key == point.key:",
        "if record.key == point.key:",
        (
            "tests/test_sweep.py::test_an_altered_notebook_or_another_key_is_executed_again",
        ),
    ),
    Mutant(
        "sweep: a worker with other code executes nevertheless",
        "sweep.py",
        "chapters.content_key(chapter, values) == key,",
        "True,",
        ("tests/test_sweep.py::test_a_worker_with_other_code_names_its_host",),
    ),
    Mutant(
        "warm: kernels draw the same numbers",
        "warm.py",
        'random.seed()  # or all children would draw the same "random" numbers',
        "pass",
        ("tests/test_warm.py::test_unseeded_draws_differ_between_kernels",),
    ),
    Mutant(
        "warm: a kernel outlives its zygote",
        "warm.py",
        "ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)",
        "pass",
        (
            "tests/test_warm.py::test_nothing_outlives_an_owner_or_a_zygote_that_is_killed",
        ),
    ),
    Mutant(
        "calibration: one rank too low",
        "sequencer/calibration.py",
        "rank = int(np.ceil(level * (len(scores) + 1) - 1e-9))",
        "rank = max(1, int(np.ceil(level * (len(scores) + 1) - 1e-9)) - 1)",
        ("tests/sequencer/test_calibration.py",),
    ),
    Mutant(
        "calibration: one rank too high",
        "sequencer/calibration.py",
        "rank = int(np.ceil(level * (len(scores) + 1) - 1e-9))",
        "rank = int(np.ceil(level * (len(scores) + 1) - 1e-9)) + 1",
        ("tests/sequencer/test_calibration.py",),
    ),
    Mutant(
        "estimator: a tracked bound knows every commit at once",
        "sequencer/estimator.py",
        "log_s - raw[:, at], asked_s, known_s, trace.kind,",
        "log_s - raw[:, at], asked_s, np.nextafter(asked_s, np.inf), trace.kind,",
        ("tests/sequencer/test_estimator.py", "-k", "tracked"),
    ),
    Mutant(
        "estimator: the tail is cut too far out",
        "sequencer/estimator.py",
        "limit_s = service_s.std() * (1 + 1e-9)",
        "limit_s = service_s.std() * 1.1",
        ("tests/sequencer/test_estimator.py", "-k", "cut"),
    ),
    Mutant(
        "features: commits after the arrival are counted",
        "sequencer/features.py",
        "for done in recent:",
        "for done in np.flatnonzero(finish_s > now - WINDOWS_S[-1]):",
        ("tests/sequencer/test_features.py", "-k", "future"),
    ),
    Mutant(
        "features: what commits within a window after the arrival has committed",
        "sequencer/features.py",
        "table[i] = (i - committed, first_layer, depth, *counts.ravel())",
        "table[i] = ((finish_s[:i] > now + 1e-4).sum(), first_layer, depth, "
        "*counts.ravel())",
        ("tests/sequencer/test_features.py", "-k", "future"),
    ),
    Mutant(
        "model file: a factor of any sign is read",
        "sequencer/modelfile.py",
        "require(0 < factor < np.inf,",
        "require(True,",
        ("tests/sequencer/test_modelfile.py", "-k", "forged"),
    ),
    Mutant(
        "model file: a scale of zero is read",
        "sequencer/modelfile.py",
        "if name in POSITIVE:",
        "if False:",
        ("tests/sequencer/test_modelfile.py", "-k", "number"),
    ),
    Mutant(
        "model file: a level may be missing",
        "sequencer/modelfile.py",
        "expected in (None, tuple(parts)),",
        "True,",
        ("tests/sequencer/test_modelfile.py", "-k", "level"),
    ),
    Mutant(
        "model file: a tree may begin anywhere",
        "sequencer/trees.py",
        "bool(((self.roots >= 0) & (self.roots < m)).all()),",
        "True,",
        ("tests/sequencer/test_modelfile.py", "-k", "node"),
    ),
    Mutant(
        "model file: a node may ask for any feature",
        "sequencer/trees.py",
        "bool(((asked >= 0) & (asked < self.n_features)).all()),",
        "True,",
        ("tests/sequencer/test_modelfile.py", "-k", "node"),
    ),
    Mutant(
        "command log: what was altered passes for torn",
        "sequencer/logfile.py",
        "require(crc32(found) == checksum, altered)",
        "if crc32(found) != checksum:\n        return None, at",
        ("tests/sequencer/test_logfile.py", "-k", "altered"),
    ),
    Mutant(
        "command log: a torn record in the middle is skipped",
        "sequencer/logfile.py",
        "require(sealed and first == position, altered)",
        "if not (sealed and first == position):\n        return None, at",
        ("tests/sequencer/test_logfile.py", "-k", "missing"),
    ),
    Mutant(
        "command log: a number of what is not there is replayed",
        "sequencer/logfile.py",
        "value >= 0 and (limit is None or value < limit),",
        "True,",
        ("tests/sequencer/test_logfile.py", "-k", "forged"),
    ),
    Mutant(
        "command log: a transaction runs before it is in the log",
        "sequencer/pipeline.py",
        "        if self.append is not None:\n"
        "            self.append(ids)\n"
        "        _dispatch(self.state, ids, self.now_s())\n",
        "        _dispatch(self.state, ids, self.now_s())\n"
        "        if self.append is not None:\n"
        "            self.append(ids)\n",
        ("tests/sequencer/test_pipeline.py", "-k", "before_anything"),
    ),
    Mutant(
        "live sequencer: a request arrives when it is read",
        "sequencer/pipeline.py",
        "            )\n    return scheduler.run(arrival_s, decided_s)",
        "            )\n    return scheduler.run(decided_s, decided_s)",
        ("tests/sequencer/test_pipeline.py", "-k", "intended"),
    ),
    Mutant(
        "replica: the state forgets in which order it was reached",
        "sequencer/replica.py",
        "state = final_state(trace.keys, commit_order(history))",
        "state = final_state(trace.keys, np.sort(history.log))",
        ("tests/sequencer/test_replica.py",),
    ),
    Mutant(
        "replica: commits of one time go by log alone",
        "sequencer/replica.py",
        "return log[np.lexsort((history.start_s[log], history.finish_s[log]))]",
        'return log[np.argsort(history.finish_s[log], kind="stable")]',
        ("tests/sequencer/test_replica.py",),
    ),
    Mutant(
        "simulator: of two commits of one time the last to start is first",
        "sequencer/kernel.py",
        "ends_s[other] == ends_s[core] and turn[other] < turn[core]",
        "ends_s[other] == ends_s[core] and turn[other] > turn[core]",
        ("tests/sequencer/test_simulate.py", "-k", "heapq"),
    ),
    Mutant(
        "simulator: a timer counts from the last of a batch",
        "sequencer/kernel.py",
        "due_s = arrival_s[taken] + read_s + setting.flush_s",
        "due_s = arrival_s[submitted - 1] + read_s + setting.flush_s",
        ("tests/sequencer/test_simulate.py", "-k", "heapq"),
    ),
    Mutant(
        "simulator: an answered client submits again without thinking",
        "sequencer/kernel.py",
        "_submit(front, answered, now_s + setting.think_s)",
        "_submit(front, answered, now_s)",
        ("tests/sequencer/test_simulate.py", "-k", "heapq or little"),
    ),
    Mutant(
        "simulator: the compiled policy decides as of the arrival",
        "sequencer/simulate.py",
        "code, memory, model, ids, before.clock_s[NOW]",
        "code, memory, model, ids, before.arrival_s[ids[0]]",
        ("tests/sequencer/test_simulate.py", "-k", "python_path"),
    ),
    Mutant(
        "simulator: service times a fiftieth too short",
        "sequencer/kernel.py",
        "ends_s[core] = now_s + busy_s[i]",
        "ends_s[core] = now_s + 0.98 * busy_s[i]",
        ("tests/sequencer/test_theory.py", "-k", "closed_form"),
    ),
    Mutant(
        "theory: the second moment of a service time is its variance",
        "sequencer/theory.py",
        "second_moment = variance_s2 + mean_s**2",
        "second_moment = variance_s2 + 0.98 * mean_s**2",
        ("tests/sequencer/test_theory.py", "-k", "M/G/1"),
    ),
    Mutant(
        "theory: of many servers a fiftieth too much waits",
        "sequencer/theory.py",
        "return waits / (servers * service_rate - arrival_rate)",
        "return 1.02 * waits / (servers * service_rate - arrival_rate)",
        ("tests/sequencer/test_theory.py", "-k", "M/M/2"),
    ),
    Mutant(
        "shadow: the lag of a dispatch is left out",
        "sequencer/shadow.py",
        "to_dispatch_s[logged] = due_s",
        "to_dispatch_s[logged] = now_s",
        ("tests/sequencer/test_shadow.py", "-k", "lag"),
    ),
    Mutant(
        "shadow: alone, the lag of a dispatch is left out",
        "sequencer/shadow.py",
        "free = _free_at(keys, ends_s, i, due_s)",
        "free = _free_at(keys, ends_s, i, now_s)",
        ("tests/sequencer/test_simulate.py", "-k", "heapq"),
    ),
    Mutant(
        "ablation: another defect is mended than the one named",
        "sequencer/report.py",
        "defects, **{defect: not getattr(defects, defect)}",
        "defects, **{Defects.names()[0]: not defects.ghosts}",
        ("tests/sequencer/test_report.py", "-k", "ablation"),
    ),
    Mutant(
        "beside measured: near is within 15 % of little, too",
        "sequencer/report.py",
        "return np.abs(difference) <= np.maximum(POINT, RELATIVE * measured)",
        "return np.abs(difference) <= RELATIVE * measured",
        ("tests/sequencer/test_report.py", "-k", "near"),
    ),
    Mutant(
        "beside measured: near is a little further",
        "sequencer/report.py",
        "POINT, RELATIVE = 0.01, 0.15",
        "POINT, RELATIVE = 0.01, 0.16",
        ("tests/sequencer/test_report.py", "-k", "near"),
    ),
    Mutant(
        "command: no number is printed as NaN",
        "cli.py",
        "finite = not isinstance(value, float) or math.isfinite(value)",
        "finite = True",
        ("tests/test_cli.py", "-k", "null"),
    ),
    Mutant(
        "clairvoyant: a solver that was stopped at once has proven everything",
        "sequencer/clairvoyant.py",
        "return Window(first, 0)  # it ended",
        "return Window(first, n)  # it ended",
        ("tests/sequencer/test_clairvoyant.py", "-k", "stopped"),
    ),
    Mutant(
        "report: a rare type has no objective in short traces",
        "sequencer/report.py",
        "probe = next(whole, self.make_trace(PROBE_SEED))",
        "probe = self.make_trace(PROBE_SEED)",
        ("tests/sequencer/test_report.py", "-k", "rare"),
    ),
    Mutant(
        "robustness: what a misestimation adds is all that there is",
        "sequencer/robustness.py",
        'at.loc[list(names)] - at.loc["none"]',
        "at.loc[list(names)]",
        ("tests/sequencer/test_robustness.py", "-k", "adds"),
    ),
    Mutant(
        "partitions: the network takes no time",
        "sequencer/partitions.py",
        "calendar.sent_s[sent] = now_s + delay_s",
        "calendar.sent_s[sent] = now_s",
        ("tests/sequencer/test_partitions.py",),
    ),
    Mutant(
        "partitions: a part executes before it has read",
        "sequencer/partitions.py",
        "if not np.isnan(site.state.finish_s[message - MESSAGE + READ]):",
        "if True:",
        ("tests/sequencer/test_partitions.py",),
    ),
    Mutant(
        "partitions: what is on its way to the logs is not in flight",
        "sequencer/partitions.py",
        "released += counts[MERGING] - counts[ASIDE]",
        "released -= counts[ASIDE]",
        ("tests/sequencer/test_partitions.py",),
    ),
    Mutant(
        "partitions: reads are not divided",
        "sequencer/partitions.py",
        "read = exchange.read_share / 2",
        "read = exchange.read_share",
        ("tests/sequencer/test_partitions.py",),
    ),
    Mutant(
        "partitions: every epoch is over at once",
        "sequencer/partitions.py",
        "end_s = (np.floor(now_s / epoch_s) + 1) * epoch_s",
        "end_s = np.floor(now_s / epoch_s) * epoch_s",
        ("tests/sequencer/test_partitions.py",),
    ),
    Mutant(
        "scale: the parts of all partitions stand aside in one",
        "sequencer/scale.py",
        '"aside": float(aside_s.sum() / span_s / work.partitions),',
        '"aside": float(aside_s.sum() / span_s),',
        ("tests/sequencer/test_scale.py",),
    ),
    Mutant(
        "scale: a sequencer saturates at a tenth of its time",
        "sequencer/scale.py",
        "np.interp(0, np.log(shares), np.log(rates_per_s))",
        "np.interp(0, np.log10(shares) + 1, np.log(rates_per_s))",
        ("tests/sequencer/test_scale.py",),
    ),
    Mutant(
        "scale: all work of what crosses is done twice, as the book sees it",
        "sequencer/theory.py",
        "return partitions * rate_per_s / (1 + crossing * repeated)",
        "return partitions * rate_per_s / (1 + crossing)",
        ("notebooks/04_evaluation_ml_for_db.ipynb",),
    ),
]


def write_mutant(mutant: Mutant, package: Path) -> None:
    """Replace the line in the copy. Stops if it is not there exactly once."""
    path = package / mutant.module
    source = path.read_text()
    if source.count(mutant.line) != 1:
        sys.exit(
            f"mutant {mutant.name!r}: its line stands {source.count(mutant.line)} "
            f"times in {mutant.module}, expected once; update scripts/mutate.py"
        )
    path.write_text(source.replace(mutant.line, mutant.broken))


def passes(tests: tuple[str, ...], source: Path) -> bool:
    """Whether the tests pass on the package in `source`."""
    notebooks = all(test.endswith(".ipynb") for test in tests)
    options = ["--nbval-lax", "--nbval-current-env"] if notebooks else []
    if notebooks:
        options += ["--nbval-sanitize-with", "tests/nbval.cfg"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "THESIS_DATA": str(ROOT / "data"),
        "THESIS_CACHE": str(ROOT / ".cache"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            *options,
            *tests,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        sys.exit(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr}")
    return done.returncode == 0


def copied(tree: Path, scratch: str, compiled: bool = False) -> Path:
    """A copy of the sources in a scratch folder, with what was compiled of them or not.

    Numba notices a changed function, but not a changed function that it calls.
    """
    ignored = None if compiled else shutil.ignore_patterns("__pycache__")
    return shutil.copytree(tree, Path(scratch) / "src", ignore=ignored)


def chosen(words: list[str]) -> list[Mutant]:
    """The mutants whose name holds one of the words; all without a word."""
    found = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    if not found:
        sys.exit(f"no mutant is named after {', '.join(words)}: see scripts/mutate.py")
    return found


def main() -> None:
    """Try every chosen mutant; the exit status counts those that no check saw."""
    mutants, survivors = chosen(sys.argv[1:]), []
    with tempfile.TemporaryDirectory() as whole:
        base = copied(ROOT / "src", whole)
        for tests in sorted({mutant.tests for mutant in mutants}):
            if not passes(tests, base):
                sys.exit(f"{tests} fail without a mutant: mend them first")
        for mutant in mutants:
            jitted = "njit" in (base / "thesis_lib" / mutant.module).read_text()
            with tempfile.TemporaryDirectory() as scratch:
                source = copied(base, scratch, compiled=not jitted)
                write_mutant(mutant, source / "thesis_lib")
                survived = passes(mutant.tests, source)
            print(f"{'SURVIVED' if survived else 'killed':<9}{mutant.name}", flush=True)
            if survived:
                survivors.append(mutant.name)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed")
    sys.exit(len(survivors))


if __name__ == "__main__":
    main()
