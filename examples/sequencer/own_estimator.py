"""An estimator of one's own: the median time of transactions with as many lines."""

import numpy as np

from thesis_lib import sequencer as sq


class MedianByLines:
    name = "median by lines"

    def fit(self, trace):
        self.lines = trace.feature_names.index("order_lines")
        lines = trace.features[:, self.lines]
        self.s = {n: np.median(trace.service_s[lines == n]) for n in np.unique(lines)}
        return self

    def predict(self, batch):
        return np.array([self.s[n] for n in batch.features[:, self.lines]])


estimator = MedianByLines().fit(sq.scenario("A", n=2_000, seed=1))
trace = sq.scenario("A", n=2_000, seed=2)  # one arrival a second: nobody waits
bid_price = sq.policy("bid-price", slo_s=0.0125, cores=8)
guess_s = sq.predict_all(estimator, trace)
system = sq.SystemConfig(cores=8, slo_s=0.0125)
history = sq.simulate(trace, bid_price, guess_s, system)
off = np.median(np.abs(np.log(guess_s / trace.service_s)))
print(f"{estimator.name}: half of its guesses are within a factor of {np.exp(off):.2f}")
print(f"violations without a queue: {sq.summarize(trace, history).violations:.1%}")
