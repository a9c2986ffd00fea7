function costCalculator(root) {
  if (root.evaluate) return;
  const known = JSON.parse(
    root.querySelector('script[type="application/json"]').textContent);

  // The arithmetic of thesis_lib.memory.cost.cost at given inputs, and the break-even.
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
