"""A calculator of costs that works in a static page: HTML and a script, no server.

Every constant of the script comes from the configurations and tables that Python uses,
and its formula repeats `deployment.evaluate`; `tests/browser` holds the two together.
Without scripts a reader sees the table at the values of the price table.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from thesis_lib.common.errors import require
from thesis_lib.memory.cost.cost import HOURS_PER_MONTH, Bill, Mix, break_even_tokens
from thesis_lib.memory.cost.cost import most_tokens as month_of_tokens
from thesis_lib.memory.cost.deployment import STORAGE_GB, Configuration, evaluate

STEPS = 100  # of a slider, evenly spaced in the logarithm
COLUMNS = {
    "token_s": "s a token",
    "tokens_per_s": "tokens a s",
    "rented_usd": "rented",
    "owned_usd": "owned",
    "energy_usd": "electricity alone",
}


@dataclass(frozen=True, slots=True)
class Slider:
    """An input that the reader moves between two ends."""

    name: str  # of the input
    label: str
    unit: str
    low: float
    high: float
    factor: float = 1.0  # from the value to what is shown

    def __post_init__(self) -> None:
        require(
            0 < self.low < self.high,
            f"slider {self.name} from {self.low:g} to {self.high:g}: expected positive "
            "ends in that order",
        )

    def position(self, value: float) -> int:
        """Where the slider stands for a value: 0 to STEPS."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(max(round(STEPS * share), 0), STEPS)

    def value(self, position: int) -> float:
        """What the input is where the slider stands."""
        return self.low * (self.high / self.low) ** (position / STEPS)


SLIDERS = (
    Slider("usd_per_hour", "Price of the rented card", "USD an hour", 0.05, 5.0),
    Slider("utilisation", "Utilisation of the hours paid for", "%", 0.01, 1.0, 100.0),
    Slider("link_gb_per_s", "Link from host memory to the card", "GB/s", 1.0, 64.0),
)


def results(
    configuration: Configuration,
    mix: Mix,
    values: Mapping[str, float],
    usd_per_hour: float | None = None,
) -> dict[str, float]:
    """What a row of the calculator says: numbers of `evaluate` and the break-even.

    `usd_per_hour` is the price of a machine whose rent no slider moves. The break-even
    is in tokens a month from which owning costs less than renting; infinite if never.
    """
    if usd_per_hour is not None:
        values = {**values, "usd_per_hour": usd_per_hour}
    row = {name: float(v) for name, v in evaluate(configuration, mix, values).items()}
    owned = Bill(
        row["monthly_usd"], row["energy_usd"], month_of_tokens(row["tokens_per_s"])
    )
    row["even_tokens"] = break_even_tokens(owned, Bill(0.0, row["rented_usd"]))
    return row


def shown(value: float) -> str:
    """Three significant digits, thousands apart, as the script writes them."""
    return "never" if math.isinf(value) else f"{float(f'{value:.3g}'):,.10g}"


def model(
    streamed: Sequence[Configuration],
    resident: Sequence[tuple[Configuration, float]],
    mix: Mix,
    values: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that the script knows, as JSON: constants, defaults and rows.

    The price of an hour is a slider for the streamed configurations and fixed for the
    resident ones.
    """
    rows = [(each, None) for each in streamed] + list(resident)
    return {
        "hours_per_month": HOURS_PER_MONTH,
        "storage_gb": STORAGE_GB,
        "generated_tokens": mix.generated_tokens,
        "steps": STEPS,
        "values": dict(values),
        "sliders": [
            {"name": s.name, "low": s.low, "high": s.high, "factor": s.factor}
            for s in SLIDERS
        ],
        "rows": [
            {
                "name": each.name,
                "count": each.count,
                "read_bytes": each.read_bytes,
                "compute_s": each.compute_s,
                "first_compute_s": each.first_compute_s,
                "batch": each.batch,
                "tokens_per_step": each.tokens_per_step,
                "memory_gb": each.memory_gb,
                "usd_per_hour": usd_per_hour,
            }
            for each, usd_per_hour in rows
        ],
    }


def calculator(
    streamed: Sequence[Configuration],
    resident: Sequence[tuple[Configuration, float]],
    mix: Mix,
    values: Mapping[str, float],
    identifier: str = "cost-calculator",
) -> str:
    """The calculator as HTML that needs nothing else.

    `streamed` share the card whose price, utilisation and link are sliders; `resident`
    are rented configurations with the price of an hour of each machine, to compare
    with. `values` are all inputs of `evaluate`.
    """
    require(
        len(streamed) > 0 and len(resident) > 0,
        "a calculator compares streamed with resident configurations: expected some "
        "of each",
    )
    known = model(streamed, resident, mix, values)
    body = "\n".join(
        [
            *(_row(each, results(each, mix, values), True) for each in streamed),
            *(
                _row(each, results(each, mix, values, price), False)
                for each, price in resident
            ),
        ]
    )
    parts = {
        "ID": identifier,
        "METHODS": "".join(
            f'<option value="{i}">{escape(each.name)}</option>'
            for i, each in enumerate(streamed)
        ),
        "SLIDERS": "\n".join(_slider(s, values[s.name], identifier) for s in SLIDERS),
        "HEADINGS": "".join(
            f'<th scope="col">{escape(heading)}</th>' for heading in COLUMNS.values()
        ),
        "ROWS": body,
        # A closing tag inside the data would end the script that holds it.
        "MODEL": json.dumps(known).replace("</", "<\\/"),
        "SCRIPT": _SCRIPT,
    }
    page = _PAGE
    for name, text in parts.items():
        page = page.replace(f"@{name}@", text)
    return page


def _slider(slider: Slider, value: float, identifier: str) -> str:
    place = f"{identifier}-{slider.name}"
    return (
        f'<div class="cc-input"><label for="{place}">{escape(slider.label)}</label>'
        f'<input type="range" id="{place}" name="{slider.name}" min="0" max="{STEPS}" '
        f'step="1" value="{slider.position(value)}">'
        f'<output for="{place}"><span data-shown="{slider.name}">'
        f"{shown(slider.factor * value)}</span> {escape(slider.unit)}</output></div>"
    )


def _row(each: Configuration, row: Mapping[str, float], ownable: bool) -> str:
    cells = "".join(
        f'<td data-cell="{name}">'
        f"{shown(row[name]) if ownable or name not in _OWNING else '–'}</td>"
        for name in COLUMNS
    )
    return f'<tr><th scope="row">{escape(each.name)}</th>{cells}</tr>'


_OWNING = ("owned_usd", "energy_usd")

_PAGE = """\
<style>
.cost-calculator { margin: 1rem 0; color-scheme: light dark; }
.cost-calculator fieldset { border: 1px solid; border-radius: 6px; margin: 0;
  padding: .6rem 1rem 1rem; min-width: 0; }
.cost-calculator legend { float: none; width: auto; font-size: 1rem; margin: 0;
  padding: 0 .4rem; font-weight: 600; }
.cost-calculator .cc-input { display: grid; gap: .1rem .8rem; align-items: center;
  grid-template-columns: 15rem 1fr 8.5rem; margin-block: .35rem; }
.cost-calculator label { margin: 0; }
.cost-calculator input, .cost-calculator select { width: 100%; min-height: 1.8rem;
  font: inherit; accent-color: #0072b2; }
.cost-calculator output { font-variant-numeric: tabular-nums; }
.cost-calculator :focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
.cost-calculator .cc-result { margin: .8rem 0; }
.cost-calculator .cc-table { overflow-x: auto; margin-top: 1rem; }
.cost-calculator thead th:first-child { text-align: left; }
.cost-calculator td { text-align: right; font-variant-numeric: tabular-nums; }
.cost-calculator th[scope=row] { text-align: left; font-weight: 400; }
.cost-calculator tr[aria-current=true] > * { font-weight: 700; }
.cost-calculator caption { caption-side: top; text-align: left; }
@media (prefers-color-scheme: dark) {
  .cost-calculator input, .cost-calculator select { accent-color: #56b4e9; }
}
html[data-theme=dark] .cost-calculator { color-scheme: dark; }
html[data-theme=light] .cost-calculator { color-scheme: light; }
@media (max-width: 700px) {
  .cost-calculator .cc-input { grid-template-columns: 1fr; }
  .cost-calculator fieldset { padding-inline: .7rem; }
}
</style>
<div class="cost-calculator" id="@ID@">
<form hidden onsubmit="return false">
<fieldset><legend>What a million tokens cost</legend>
<div class="cc-input"><label for="@ID@-method">Method</label>
<select id="@ID@-method" name="method">@METHODS@</select><span></span></div>
@SLIDERS@
<p class="cc-result"><output name="result" aria-live="polite"></output></p>
<button type="reset">Back to the price table</button>
</fieldset>
</form>
<div class="cc-table" tabindex="0" role="region" aria-label="Costs by method">
<table class="dataframe">
<caption>Times, and USD a million tokens</caption>
<thead><tr><th scope="col">method</th>@HEADINGS@</tr></thead>
<tbody>
@ROWS@
</tbody>
</table>
</div>
<script type="application/json">@MODEL@</script>
<script>
@SCRIPT@
document.querySelectorAll(".cost-calculator").forEach(costCalculator);
</script>
</div>
"""

_SCRIPT = """\
function costCalculator(root) {
  if (root.evaluate) return;
  const known = JSON.parse(
    root.querySelector('script[type="application/json"]').textContent);

  // The arithmetic of thesis_lib.memory.cost.deployment.evaluate, and the break-even.
  function evaluate(row, values) {
    const v = row.usd_per_hour === null
      ? values : { ...values, usd_per_hour: row.usd_per_hour };
    const reading_s = row.read_bytes / (v.link_gb_per_s * 1e9);
    const first_s = Math.max(reading_s, row.first_compute_s);
    const step_s = Math.max(reading_s, row.compute_s);
    const token_s = step_s / row.tokens_per_step;
    const batch_s = first_s + (known.generated_tokens - 1) * token_s;
    const tokens_per_s = row.batch * known.generated_tokens / batch_s;
    const million_h = 1e6 / (3600 * tokens_per_s);
    const capex_usd = v.card_usd + v.host_usd + v.memory_usd_per_gb * row.memory_gb
      + v.storage_usd_per_gb * known.storage_gb;
    const monthly_usd = capex_usd / v.months;
    const energy_an_hour = v.watts / 1000 * v.pue * v.usd_per_kwh;
    const capital_usd = monthly_usd / known.hours_per_month / v.utilisation;
    const rented_usd = row.count * v.usd_per_hour / v.utilisation * million_h;
    const energy_usd = energy_an_hour * million_h;
    const owned_usd = (capital_usd + energy_an_hour) * million_h;
    const saved = rented_usd - energy_usd;
    const most = tokens_per_s * 3600 * known.hours_per_month;
    const tokens = saved > 0 ? monthly_usd / (saved / 1e6) : Infinity;
    const even_tokens = tokens <= most ? tokens : Infinity;
    return { token_s, tokens_per_s, rented_usd, energy_usd, owned_usd, monthly_usd,
      even_tokens };
  }

  const form = root.querySelector("form");
  const shown = (x) => Number.isFinite(x)
    ? x.toLocaleString("en-GB", { maximumSignificantDigits: 3 }) : "never";
  // A slider that was not moved stands for the exact value of the price table.
  const moved = new Set();
  const values = () => {
    const found = { ...known.values };
    for (const s of known.sliders) {
      const position = Number(form.elements[s.name].value);
      if (moved.has(s.name))
        found[s.name] = s.low * (s.high / s.low) ** (position / known.steps);
    }
    return found;
  };

  function update() {
    const v = values();
    for (const s of known.sliders) {
      const text = shown(s.factor * v[s.name]);
      root.querySelector(`[data-shown=${s.name}]`).textContent = text;
      form.elements[s.name].dataset.value = String(v[s.name]);
      const unit = root.querySelector(`[data-shown=${s.name}]`).parentNode;
      form.elements[s.name].setAttribute("aria-valuetext", unit.textContent);
    }
    const chosen = Number(form.elements.method.value);
    const found = known.rows.map((row) => evaluate(row, v));
    root.querySelectorAll("tbody tr").forEach((tr, i) => {
      tr.setAttribute("aria-current", String(i === chosen));
      tr.querySelectorAll("td").forEach((td) => {
        if (td.textContent !== "–") td.textContent = shown(found[i][td.dataset.cell]);
      });
    });
    const mine = found[chosen];
    const others = known.rows.map((row, i) => [row, found[i]])
      .filter(([row]) => row.usd_per_hour !== null);
    const [least, cost] = others.reduce(
      (a, b) => (b[1].rented_usd < a[1].rented_usd ? b : a));
    const times = mine.rented_usd / cost.rented_usd;
    const even = mine.even_tokens === Infinity ? "Owning never costs less than renting."
      : "Owning costs less than renting from "
        + `${shown(mine.even_tokens)} tokens a month.`;
    form.elements.result.textContent =
      `${known.rows[chosen].name}: ${shown(mine.rented_usd)} USD a million tokens `
      + `rented, ${shown(mine.owned_usd)} USD owned. ${even} Rented, `
      + `${least.name} costs ${shown(cost.rented_usd)} USD, `
      + (times >= 1 ? `${shown(times)} times less.`
        : `${shown(1 / times)} times as much.`);
  }

  form.addEventListener("input", (event) => {
    moved.add(event.target.name);
    update();
  });
  form.addEventListener("reset", () => {
    moved.clear();
    setTimeout(update);
  });
  root.evaluate = evaluate;
  root.known = known;
  form.hidden = false;
  update();
}
"""
