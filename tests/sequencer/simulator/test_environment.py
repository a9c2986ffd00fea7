"""Laws of the environment: it is the simulator, asked a step at a time."""

import warnings
from dataclasses import fields

import numpy as np
import pytest
from environment import SEEN, SequencerEnv, decide_by, observe, scored
from gymnasium.utils.env_checker import check_env
from key_sets import no_keys

from thesis_lib.common.errors import InvalidInput
from thesis_lib.sequencer.core.trace import Forecast, Trace
from thesis_lib.sequencer.policies.registry import policy
from thesis_lib.sequencer.simulator.simulator import Delays, SystemConfig, simulate
from thesis_lib.sequencer.workload.arrivals import at_rate
from thesis_lib.sequencer.workload.scenarios import scenario

CORES, SLO_S = 2, 0.004
DELAYS = Delays(lag_s=2e-4, worker_s=1e-4)


def episode(seed, n=80):
    trace = at_rate(scenario("A", n, seed=seed), 3_000, seed)
    noise = np.random.default_rng(seed).lognormal(0, 0.3, n)
    return trace, trace.service_s * noise


def random_scores(seed, window):
    """A learner without sense, which answers alike to what it sees alike."""
    weights = np.random.default_rng(seed).normal(size=(window, len(SEEN)))
    return lambda seen: np.tanh((seen * weights).sum(axis=1))


def play(env, scores, seed):
    """The rewards of an episode, and its history."""
    (seen, _), over, rewards = env.reset(seed=seed), False, []
    while not over:
        seen, reward, over, _, info = env.step(scores(seen))
        rewards.append(reward)
    return rewards, info["history"]


@pytest.mark.parametrize("delays", [{}, {"delays": DELAYS}], ids=["free", "delays"])
@pytest.mark.parametrize("window", [1, 3, 32])
def test_an_episode_is_the_run_of_the_policy_that_was_learned(window, delays):
    env = SequencerEnv(episode, cores=CORES, slo_s=SLO_S, window=window, **delays)
    for seed in range(6):
        scores = random_scores(seed, window)
        rewards, history = play(env, scores, seed)
        drawn = int(np.random.default_rng(seed).integers(2**31))
        trace, estimated_s = episode(drawn)
        own = policy(scored(scores, window), slo_s=SLO_S, cores=CORES)
        ran = simulate(
            trace, own, estimated_s, SystemConfig(cores=CORES, slo_s=SLO_S, **delays)
        )
        for column in fields(history):
            ours, theirs = (getattr(h, column.name) for h in (history, ran))
            np.testing.assert_array_equal(ours, theirs, err_msg=column.name)
        assert sum(rewards) == -np.count_nonzero(ran.violated)
        assert max(rewards) <= 0


def test_it_is_an_environment_of_gymnasium():
    env = SequencerEnv(episode, cores=CORES, slo_s=SLO_S, window=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Box observation space")  # has no bounds
        warnings.filterwarnings("ignore", ".*render modes")
        warnings.simplefilter("error", append=True)
        check_env(env)


def test_who_drops_everybody_loses_everybody_one_by_one():
    env = SequencerEnv(episode, cores=CORES, slo_s=SLO_S)
    rewards, history = play(env, lambda seen: -seen[:, 0], 1)
    assert rewards == [-1.0] * 80
    assert history.dropped.all()


def waiting(now_s):
    """Three that wait, at seconds 0, 1 and 2 with an objective of 4."""
    arrival_s = np.arange(3.0)
    trace = Trace.of_jobs(arrival_s, np.ones(3), no_keys(3))
    batch = trace.batch(np.arange(3), arrival_s + 4, arrival_s)
    service_s = np.array([1.0, 2.0, 0.5])
    finish_s = now_s + 0.5 + service_s  # half a second until a core is free
    return batch, Forecast(service_s, finish_s, np.array([0.9, 0.5, 0.1]))


def test_what_is_seen_is_in_shares_of_the_objective():
    seen = observe(*waiting(3.0), 3.0, 4)
    np.testing.assert_array_equal(
        seen,  # there, waited, service, slack, probability
        [
            [1, 0.75, 0.25, -0.125, 0.9],
            [1, 0.5, 0.5, -0.125, 0.5],
            [1, 0.25, 0.125, 0.5, 0.1],
            [0, 0, 0, 0, 0],
        ],
    )
    np.testing.assert_array_equal(observe(*waiting(3.0), 3.0, 2), seen[:2])


@pytest.mark.parametrize(
    ("scores", "order", "dropped"),
    [
        ([0.1, 0.3, 0.2, 0.9], [1, 2, 0], []),
        ([0.5, -0.1, 0.5], [0, 2], [1]),  # equal ones in order of arrival
        ([0.0, 0.5], [1, 0, 2], []),  # the third is out of sight
        ([-1.0], [1, 2], [0]),
    ],
)
def test_scores_order_and_drop(scores, order, dropped):
    batch, _ = waiting(3.0)
    decision = decide_by(np.array(scores), batch)
    assert decision.order.tolist() == order
    assert decision.dropped.tolist() == dropped
    assert not len(decision.held)


def test_bad_settings_and_bad_answers_are_rejected_by_name():
    def refused(says, call, *arguments, **options):
        with pytest.raises(InvalidInput, match=says):
            call(*arguments, **options)

    env = SequencerEnv(episode, cores=CORES, slo_s=SLO_S, window=4)
    refused("no episode has begun", env.step, np.zeros(4))
    env.reset(seed=0)
    for action in (np.zeros(3), np.array([0.0, np.nan, 0.0, 0.0])):
        refused("scores", env.step, action)
    play(env, lambda seen: seen[:, 0], 0)
    refused("or it is over", env.step, np.zeros(4))
    refused("window", SequencerEnv, episode, cores=CORES, slo_s=SLO_S, window=0)
    refused("cores", SequencerEnv, episode, cores=0, slo_s=SLO_S)
    trace, _ = episode(1)
    nobody = trace.take(np.arange(0)), np.empty(0)
    empty = SequencerEnv(lambda seed: nobody, cores=CORES, slo_s=SLO_S)
    refused("no transactions", empty.reset, seed=1)
