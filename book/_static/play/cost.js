// The cost calculator of chapter 6, behind a guess.
Play.parts.cost = (root, known) => {
  const calculator = root.querySelector(".cost-calculator"), [row] = known.rows;
  const usd = (x) => `${Play.shown(x)} USD`;
  calculator.hidden = true;
  const question = Play.guess({
    question: () => `${row.name}: what do a million tokens cost on a rented card of `
      + `${usd(known.values.usd_per_hour)} an hour, in use for `
      + `${Play.shown(100 * known.values.utilisation)} % of its hours?`,
    label: "Your guess", at: 6, format: usd,
    values: [0, 1, 2, 3, 4].flatMap((power) => [1, 2, 5].map((n) => n * 10 ** power)),
    truth: () => `It is ${usd(calculator.evaluate(row, known.values).rented_usd)}.`,
    see: () => { calculator.hidden = false; },
    hide: () => { calculator.hidden = true; },
  });
  return Play.el("section", { "aria-label": "Cost calculator" }, question.node,
    root.querySelector("style"), calculator);
};
