"""Every figure of the book, by topic; nothing else plots."""
# ruff: noqa: F401 - what is imported here is what the book draws with

from thesis_lib.book.figures.compression import (
    bits_and_perplexity,
    bytes_and_perplexity,
    losses_by_ratio,
    pareto,
    perplexity_by_ratio,
    quantisation_levels,
    spectra,
)
from thesis_lib.book.figures.cost import (
    model_sizes,
    monthly_bills,
    parameter_shares,
    tornado,
)
from thesis_lib.book.figures.estimators import (
    agreements,
    collected_trace,
    coverage,
    hidden_patterns,
    operating_units,
    q_error_curves,
)
from thesis_lib.book.figures.offload import (
    COPY_LOOKS,
    PEER_COLOURS,
    RING_COLOURS,
    decode_times,
    expected_tokens,
    memory_against_time,
    memory_over_time,
    memory_parts,
    predicted_times,
    published_times,
    ring_picture,
    roofline_stream,
    speculation,
    step_times,
    time_against_memory,
    token_timeline,
)
from thesis_lib.book.figures.policies import (
    ablation,
    against_sequencing,
    beside_measured,
    beyond_fifo,
    collapse,
    coordinated_omission,
    distance_to_optimum,
    goals,
    ingredients,
    one_sequencer,
    price_of_fairness,
    rates_by_scenario,
    reductions,
    schedules,
    through_a_crowd,
    violations_against_load,
    weak_scaling,
    worker_timelines,
)
from thesis_lib.book.figures.style import (
    COLOURS,
    GREY,
    against_reference,
    as_svg,
    sweep_lines,
    theme,
)
