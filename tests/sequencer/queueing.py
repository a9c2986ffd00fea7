"""Closed forms of queueing theory that the simulator must agree with.

Rates are per second, times in seconds, and every system is open with Poisson
arrivals and first come first served. Kleinrock, Queueing Systems I (1975): chapter 3
for M/M/1 and M/M/c, section 5.6 for the Pollaczek-Khinchine mean value formula.
The last two are of arrivals alone, those of a Markov-modulated Poisson process.
"""

import math

from thesis_lib.common.errors import require


def _require_steady(arrival_rate: float, capacity: float) -> None:
    require(
        0 < arrival_rate < capacity,
        f"arrival_rate={arrival_rate:g}/s must lie between 0 and the capacity, "
        f"{capacity:g}/s: there is no steady state otherwise; lower the load or add "
        "servers",
    )


def mm1_mean_wait(arrival_rate: float, service_rate: float) -> float:
    """Mean time in queue of an M/M/1 server, in seconds.

    Raises InvalidInput without a steady state.
    """
    _require_steady(arrival_rate, service_rate)
    return arrival_rate / service_rate / (service_rate - arrival_rate)


def mg1_mean_wait(arrival_rate: float, mean_s: float, variance_s2: float) -> float:
    """Return the mean queueing time of an M/G/1 server, s (Pollaczek, Khinchine)."""
    require(mean_s > 0, f"mean_s={mean_s:g} must be positive")
    require(variance_s2 >= 0, f"variance_s2={variance_s2:g} must not be negative")
    _require_steady(arrival_rate, 1 / mean_s)
    second_moment = variance_s2 + mean_s**2
    return arrival_rate * second_moment / (2 * (1 - arrival_rate * mean_s))


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival at M/M/c waits; `offered` is arrival/service rate.

    Raises InvalidInput without a steady state.
    """
    require(servers >= 1, f"servers={servers}: expected at least 1")
    _require_steady(offered, servers)
    # Erlang B by its recursion, which cannot overflow, then B to C.
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def mmc_mean_wait(arrival_rate: float, service_rate: float, servers: int) -> float:
    """Mean time in queue of M/M/c, in seconds.

    Raises InvalidInput without a steady state.
    """
    _require_steady(arrival_rate, servers * service_rate)
    waits = erlang_c(servers, arrival_rate / service_rate)
    return waits / (servers * service_rate - arrival_rate)


def mm1_late(arrival_rate: float, service_rate: float, within_s: float) -> float:
    """P(time in an M/M/1 system > within_s): exponential with rate mu - lambda.

    Raises InvalidInput without a steady state and for a negative time.
    """
    _require_steady(arrival_rate, service_rate)
    require(within_s >= 0, f"within_s={within_s:g} must not be negative")
    return math.exp(-(service_rate - arrival_rate) * within_s)


def mmpp2_mean_rate(
    rates_per_s: tuple[float, float], sojourns_s: tuple[float, float]
) -> float:
    """Arrivals per second of a two-state Markov-modulated Poisson process."""
    weighted = zip(rates_per_s, sojourns_s, strict=True)
    return sum(rate * stay for rate, stay in weighted) / sum(sojourns_s)


def mmpp2_dispersion(
    rates_per_s: tuple[float, float], sojourns_s: tuple[float, float], window_s: float
) -> float:
    """Variance over mean of the arrivals in a window of a stationary MMPP-2.

    1 for a Poisson process; an infinite window gives the limit. Raises InvalidInput
    for a window that is not positive. Heffes and Lucantoni, IEEE JSAC 4(6), 1986.
    """
    require(window_s > 0, f"window_s={window_s:g} must be positive")
    leave = 1 / sojourns_s[0] + 1 / sojourns_s[1]  # rate at which the chain forgets
    share = sojourns_s[0] / sum(sojourns_s)
    variance = share * (1 - share) * (rates_per_s[0] - rates_per_s[1]) ** 2
    seen = 1 + math.expm1(-leave * window_s) / (leave * window_s)
    mean = mmpp2_mean_rate(rates_per_s, sojourns_s)
    return 1 + 2 * variance / (mean * leave) * seen
