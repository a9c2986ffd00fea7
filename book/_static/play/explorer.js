// Scenario A at the points of a grid that was simulated: what each policy violates.

// What the record says of a policy at a point; of an axis that it does not read there
// is one value.
Play.explored = (known, policy, at) => {
  let rows = known.grid.filter((row) => row.policy === policy);
  for (const axis of Object.keys(known.axes)) {
    const exact = rows.filter((row) => row[axis] === at[axis]);
    if (exact.length) rows = exact;
  }
  const place = known.axes.load.indexOf(at.load), [row] = rows;
  const of = (name) => row[name] ? row[name][place] : null;
  return { violations: of("violations"), reach: of("reach"),
    above_reach: of("above_reach"), goodput_per_s: of("goodput_per_s") };
};

Play.parts.explorer = (root, known) => {
  const { el, shown } = Play, percent = (x) => `${shown(x)} %`;
  const slider = (label, axis, value, format) => Play.slider({ label,
    values: known.axes[axis], at: known.axes[axis].indexOf(value), format,
    change: () => change() });
  const inputs = {
    load: slider("Load, 1 is what FIFO can do", "load", 1.1, (x) => x.toFixed(2)),
    slo_ms: slider("Objective", "slo_ms", 12.5, (x) => `${x} ms`),
    sigma: slider("Scatter of the estimates", "sigma", 0.2,
      (x) => x ? `σ = ${x}` : "none"),
    lag_ms: slider("Lag of the sequencer", "lag_ms", 0, (x) => x ? `${x} ms` : "none"),
  };
  const names = Object.keys(known.titles).filter((name) => name !== "bound");
  let policy = "codel";
  const choose = Play.select("Policy", names.map((name) => [name, known.titles[name]]),
    (name) => { policy = name; question.again(); });
  choose.input.value = policy;
  const at = () => Object.fromEntries(
    Object.entries(inputs).map(([axis, input]) => [axis, input.value]));
  const point = (name) => Play.explored(known, name, at());

  // A value with its interval, cut at what a share can be.
  const hundredths = (x) => shown(Math.round(100 * x) / 100);
  const spanned = (value, reach) => `${hundredths(value)} (`
    + `${hundredths(Math.max(0, value - reach))} to `
    + `${hundredths(Math.min(100, value + reach))})`;
  function table() {
    const bound = point("bound");
    const head = ["policy", "violations, %", "", "above the bound", "on time a second"];
    const row = (name) => {
      const found = point(name), mine = name === policy;
      const marks = [el("span", { class: `play-bar play-bar-${name}`,
        style: `width: ${found.violations}%` })];
      if (mine) marks.push(el("span", { class: "play-mark",
        style: `left: ${question.guessed}%`, title: "your guess" }));
      return el("tr", { "aria-current": mine ? "true" : false },
        el("th", { scope: "row" }, known.titles[name]),
        el("td", {}, spanned(found.violations, found.reach)),
        el("td", { class: "play-bars", "aria-hidden": "true" }, el("div", {}, marks)),
        el("td", {}, name === "bound" ? "–"
          : spanned(found.violations - bound.violations, found.above_reach)),
        el("td", {}, name === "bound" ? "–"
          : Play.whole(found.goodput_per_s)));
    };
    return el("table", {}, el("caption", {}, "At this point, with 95 % intervals over "
      + `${known.seeds} paired seeds, cut at 0 and at 100 %`),
    el("thead", {}, el("tr", {}, head.map((x) =>
      el("th", { scope: "col", class: x ? "" : "play-bars" }, x)))),
    el("tbody", {}, [...names, "bound"].map(row)));
  }
  const rest = el("div", { class: "play-table", tabindex: 0, role: "region",
    "aria-label": "All policies at this point", hidden: "" });
  const question = Play.guess({
    question: () => `What share of the transactions is late or dropped under `
      + `${known.titles[policy]}?`,
    label: "Your guess", values: [...Array(101).keys()], at: 50, format: percent,
    truth: () => {
      const found = point(policy), bound = point("bound");
      return `${known.titles[policy]} violates ${percent(found.violations)}; nobody can `
        + `violate less than ${percent(bound.violations)}.`;
    },
    see: () => { rest.hidden = false; change(); },
    hide: () => { rest.hidden = true; },
  });
  function change() {
    if (!question.seen) return;
    rest.replaceChildren(table());
    question.tell();
  }
  const axes = { load: "load", slo_ms: "objective", sigma: "scatter", lag_ms: "lag" };
  const errors = Object.entries(axes).map(([axis, word]) => {
    const { most, median } = known.between[axis];
    return `${word} ${shown(most)} (${shown(median)})`;
  }).join(", ");
  return el("section", { "aria-label": "Explorer of objectives" },
    Object.values(inputs).map((each) => each.node), choose.node, question.node, rest,
    el("p", { class: "play-note" }, "The sliders stop where something was simulated: "
      + `${Play.whole(known.transactions)} transactions on ${known.cores} `
      + `cores, ${known.seeds} times. Between two stops no line is drawn: half way it could `
      + "miss by so many points of violations at most (in the median), along each axis: "
      + `${errors}.`));
};
