// The worked batch of chapter 3: watched under a policy, or put in order by hand.

// What thesis_lib.sequencer.simulator.replay does, for rows that are all written:
// locks are booked in log order, cores taken in the order in which all are held.
Play.replay = (batch, log, dispatch_s) => {
  const n = batch.rows.length, { cores, service_s, slo_s } = batch;
  const queues = {}, ready = [], running = [], held = [];
  const blank = () => new Array(n).fill(null);
  const found = {
    log, decided_s: blank(), granted_s: blank(), start_s: blank(), finish_s: blank(),
    core: blank(), held,
  };
  log.forEach((i, at) => { found.decided_s[i] = dispatch_s[at]; });
  const heads = (i) => [...batch.rows[i]].every((row) => queues[row][0] === i);
  const hold = (row, i, since_s) => held.push({ row, i, since_s });
  const grant = (i, now_s) => { found.granted_s[i] = now_s; ready.push(i); };
  for (let next = 0; next < log.length || running.length;) {
    // At equal times a commit precedes a dispatch, the earlier start first.
    running.sort((a, b) => found.finish_s[a] - found.finish_s[b]);
    const due_s = next < log.length ? dispatch_s[next] : Infinity;
    let now_s = due_s;
    if (running.length && found.finish_s[running[0]] <= due_s) {
      const i = running.shift();
      now_s = found.finish_s[i];
      for (const row of batch.rows[i]) {
        queues[row].shift();
        const heir = queues[row][0];
        if (heir === undefined) continue;
        hold(row, heir, now_s);
        if (found.granted_s[heir] === null && heads(heir)) grant(heir, now_s);
      }
    } else {
      const i = log[next++];
      for (const row of batch.rows[i]) {
        (queues[row] ??= []).push(i);
        if (queues[row][0] === i) hold(row, i, now_s);
      }
      if (heads(i)) grant(i, now_s);
    }
    while (ready.length && running.length < cores) {
      const i = ready.shift(), busy = running.map((other) => found.core[other]);
      found.core[i] = [...Array(cores).keys()].find((core) => !busy.includes(core));
      found.start_s[i] = now_s;
      found.finish_s[i] = now_s + service_s[i];
      running.push(i);
    }
  }
  found.deadline_s = batch.arrival_s.map((s) => s + slo_s);
  found.dropped = batch.rows.map((_, i) => !log.includes(i));
  found.late = batch.rows.map(
    (_, i) => !found.dropped[i] && found.finish_s[i] > found.deadline_s[i]);
  found.violations = batch.rows.filter(
    (_, i) => found.dropped[i] || found.late[i]).length;
  return found;
};

Play.watched = (batch, policy) => {
  const { log, decided_s } = policy;
  const found = Play.replay(batch, log, log.map((i) => decided_s[i]));
  found.decided_s = decided_s; // of what was refused, too
  return found;
};

// In an order of one's own a transaction enters the log when it and all before it are
// there.
Play.byHand = (batch, log) => {
  let last_s = 0;
  const found = Play.replay(
    batch, log, log.map((i) => last_s = Math.max(last_s, batch.arrival_s[i])));
  batch.rows.forEach((_, i) => { found.decided_s[i] ??= batch.arrival_s[i]; });
  return found;
};

Play.parts.schedule = (root, batch) => {
  const { el, svg } = Play, ms = (s) => `${(1e3 * s).toFixed(1)} ms`;
  const all = batch.rows.map((_, i) => i);
  const list = (which) => all.filter((i) => which[i]).join(", ") || "none";
  const sum = (found) => `${found.violations} of ${all.length} violate their `
    + `objective: late ${list(found.late)}; dropped ${list(found.dropped)}.`;
  const fate = (found, i) => found.dropped[i] ? "dropped"
    : found.late[i] ? "late" : "on time";
  const works = (i) => `${Math.round(1e3 * batch.service_s[i])} ms`;

  function moments(found) {
    const times = [batch.arrival_s, found.decided_s, found.granted_s, found.start_s,
      found.finish_s, found.deadline_s].flat().filter((s) => s !== null);
    return [...new Set(times)].sort((a, b) => a - b);
  }

  function happening(found, now_s) {
    const at = (times, what, which = () => true) => {
      const who = all.filter((i) => times[i] === now_s && which(i));
      return who.length ? `${who.join(", ")} ${what(who.length > 1)}` : null;
    };
    const s = (one, many) => (several) => several ? many : one;
    return [
      at(batch.arrival_s, s("arrives", "arrive")),
      at(found.finish_s, s("commits on time", "commit on time"), (i) => !found.late[i]),
      at(found.finish_s, s("commits late", "commit late"), (i) => found.late[i]),
      at(found.decided_s, s("is dropped", "are dropped"), (i) => found.dropped[i]),
      at(found.decided_s, s("enters the log", "enter the log"), (i) => !found.dropped[i]),
      at(found.granted_s, s("gets all its rows", "get all their rows")),
      at(found.start_s, s("starts", "start")),
      at(found.deadline_s, s("has its deadline", "have their deadlines")),
    ].filter((x) => x).join("; ");
  }

  // A row for each transaction, core and lock; what is not known at `now_s` is hidden.
  function drawing(width, found, now_s, title) {
    const left = 62, right = 58, step = 22, axis = 22;
    const order = [...found.log, ...all.filter((i) => found.dropped[i])];
    const keys = [...new Set(batch.rows.join(""))].sort();
    const lanes = [...order.map(String), ..."12".slice(0, batch.cores), ...keys];
    const end_s = Math.max(0.02, ...found.finish_s);
    const whole = now_s === Infinity;
    const x = (s) => left + (width - left - right) * s / end_s;
    const y = (row) => 6 + step * row + (row >= all.length ? 10 : 0)
      + (row >= all.length + batch.cores ? 6 : 0);
    const height = y(lanes.length) + axis;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height,
      role: "img", "aria-label": whole ? `${title}. ${sum(found)}`
        : `${title}. At ${ms(now_s)}: ${happening(found, now_s)}.` });
    const text = (words, at, row, more = {}) => picture.append(
      svg("text", { x: at, y: y(row) + 15, ...more }, words));
    const bar = (from_s, to_s, row, kind, words) => {
      const end = Math.min(to_s, now_s);
      if (from_s === null || from_s > now_s) return;
      const w = Math.max(x(end) - x(from_s), 1);
      picture.append(svg("rect", { x: x(from_s), y: y(row) + 2, width: w,
        height: step - 4, class: `play-${kind}`, rx: 2 }));
      if (w > 9 * words.length) text(words, x(from_s) + w / 2, row,
        { "text-anchor": "middle", class: "play-on" });
    };
    const rule = (at_s, row, kind) => picture.append(svg("line", { x1: x(at_s),
      x2: x(at_s), y1: y(row) + 1, y2: y(row) + step - 1, class: kind }));
    for (let tick = 0; tick <= 1e3 * end_s; tick += 5) {
      picture.append(svg("line", { x1: x(tick / 1e3), x2: x(tick / 1e3), y1: 4,
        y2: height - axis, class: "play-grid" }));
      picture.append(svg("text", { x: x(tick / 1e3), y: height - 6,
        "text-anchor": "middle" }, `${tick}${tick ? "" : " ms"}`));
    }
    order.forEach((i, row) => {
      text(`${i}: ${batch.rows[i]}`, 2, row);
      const begun_s = Math.min(found.start_s[i] ?? found.decided_s[i], now_s);
      if (begun_s > batch.arrival_s[i]) picture.append(svg("line", {
        x1: x(batch.arrival_s[i]), x2: x(begun_s), y1: y(row) + step / 2,
        y2: y(row) + step / 2, class: "play-wait" }));
      rule(batch.arrival_s[i], row, "play-come");
      const over = found.finish_s[i] !== null && found.finish_s[i] <= now_s;
      const kind = !over ? "running" : found.late[i] ? "late" : "good";
      bar(found.start_s[i], found.finish_s[i], row, kind, batch.rows[i]);
      rule(found.deadline_s[i], row, "play-due");
      const told = found.dropped[i] ? found.decided_s[i] <= now_s : over;
      if (told) text(fate(found, i), width - right + 4, row,
        { class: `play-word-${fate(found, i).split(" ")[0]}` });
    });
    for (let core = 0; core < batch.cores; core++) {
      text(`core ${core + 1}`, 2, all.length + core);
      for (const i of all) if (found.core[i] === core) bar(found.start_s[i],
        found.finish_s[i], all.length + core, "running", String(i));
    }
    keys.forEach((key, at) => {
      const row = all.length + batch.cores + at;
      text(`row ${key}`, 2, row);
      for (const one of found.held) if (one.row === key) {
        bar(one.since_s, found.start_s[one.i], row, "idle", "");
        bar(found.start_s[one.i], found.finish_s[one.i], row, "running",
          String(one.i));
      }
    });
    if (!whole) picture.append(svg("line", { x1: x(now_s), x2: x(now_s), y1: 2,
      y2: height - axis, class: "play-now" }));
    return picture;
  }

  function table(found) {
    const cell = (s) => s === null ? "–" : (1e3 * s).toFixed(1);
    const head = ["transaction", "writes", "works", "arrives", "decided", "starts",
      "ends", "deadline", "outcome"];
    return el("table", {}, el("caption", {}, "Times in ms"),
      el("thead", {}, el("tr", {}, head.map((x) => el("th", { scope: "col" }, x)))),
      el("tbody", {}, all.map((i) => el("tr", {},
        el("th", { scope: "row" }, String(i)),
        [[...batch.rows[i]].join(" "), cell(batch.service_s[i]),
          cell(batch.arrival_s[i]), cell(found.decided_s[i]), cell(found.start_s[i]),
          cell(found.finish_s[i]), cell(found.deadline_s[i]), fate(found, i)]
          .map((x) => el("td", {}, x))))));
  }
  const folded = (found) => el("details", {}, el("summary", {}, "As a table"),
    el("div", { class: "play-table", tabindex: 0, role: "region",
      "aria-label": "Times of the transactions" }, table(found)));

  // --- Watch a policy -----------------------------------------------------------
  const first = batch.policies[0];
  // A reader of the chapter knows already what becomes of the batch under the first.
  let policy = batch.policies.find((each) => each.name === "edf");
  let seen = Play.watched(batch, policy), at = 0;
  let timer = null;
  const unknown = () => ({ ...Play.replay(batch, [], []), dropped: all.map(() => false),
    late: all.map(() => false), log: all, decided_s: batch.arrival_s });
  const picture = Play.drawn((width) => question.seen
    ? drawing(width, seen, times()[at], policy.title)
    : drawing(width, unknown(), 0, "The eight transactions and their deadlines"));
  const times = () => moments(seen);
  const said = el("p", { class: "play-said", role: "status" });
  const clock = Play.el("input", { type: "range", min: 0, step: 1, id: Play.id(),
    oninput: () => go(Number(clock.value)) });
  const shownAt = el("output", { for: clock.id });
  const playing = Play.button("Play", () => timer ? stop() : play());
  const rest = el("div", {});
  const player = el("div", { hidden: "" },
    el("div", { class: "play-input" }, el("label", { for: clock.id }, "Time"), clock,
      shownAt),
    el("div", { class: "play-buttons" },
      Play.button("Step back", () => go(at - 1)), playing,
      Play.button("Step", () => go(at + 1)),
      Play.button("To the end", () => go(times().length - 1))),
    said, rest);

  function go(to, quiet = false) {
    if (!quiet) stop();
    at = Math.min(Math.max(to, 0), times().length - 1);
    clock.value = at;
    shownAt.textContent = ms(times()[at]);
    clock.setAttribute("aria-valuetext", shownAt.textContent);
    said.textContent = `At ${ms(times()[at])}: ${happening(seen, times()[at])}.`;
    picture.redraw();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    playing.textContent = "Play";
    said.setAttribute("aria-live", "polite");
  }
  function play() {
    if (at === times().length - 1) go(0);
    playing.textContent = "Pause";
    said.setAttribute("aria-live", "off"); // a reader cannot be told that fast
    timer = setInterval(() => {
      go(at + 1, true);
      if (at === times().length - 1) stop();
    }, 450);
  }
  const question = Play.guess({
    question: () => `${policy.title} ${policy.does}. How many of the eight will be `
      + "late or dropped?",
    label: "Your guess", values: [...all, all.length], at: 0,
    format: (n) => `${n} of ${all.length}`,
    truth: () => sum(seen),
    see: () => {
      player.hidden = false;
      closed.hidden ||= policy === first;
      hand.hidden = !closed.hidden;
      clock.max = times().length - 1;
      rest.replaceChildren(folded(seen));
      go(0);
    },
    hide: () => { stop(); player.hidden = true; picture.redraw(); },
  });
  const choose = Play.select("Policy",
    batch.policies.map((each) => [each.name, each.title]), (name) => {
      policy = batch.policies.find((each) => each.name === name);
      seen = Play.watched(batch, policy);
      question.again();
    });
  choose.input.value = policy.name;

  // --- By hand ------------------------------------------------------------------
  let order = [...all], refused = new Set();
  const mine = () => Play.byHand(batch, order.filter((i) => !refused.has(i)));
  const counted = el("p", { class: "play-truth", role: "status" });
  const own = Play.drawn((width) => drawing(width, mine(), Infinity, "Your schedule"));
  const ownTable = el("div", {});
  const best = Play.byHand(batch, batch.best.log);
  const besides = Play.drawn(
    (width) => drawing(width, best, Infinity, "A best schedule"));
  const beside = el("div", { hidden: "" },
    el("p", { class: "play-title" }, "A best one"), besides, folded(best));
  const items = el("ol", { class: "play-order" });
  const names = all.map((i) => {
    const name = `transaction ${i}`;
    const buttons = [["↑", "Earlier", -1], ["↓", "Later", 1]].map(
      ([sign, words, by]) => Play.button(sign, () => {
        const from = order.indexOf(i), to = from + by;
        if (to < 0 || to >= order.length) return;
        [order[from], order[to]] = [order[to], order[from]];
        arrange();
      }, { "aria-label": `${words}: ${name}` }));
    const drop = Play.button("Drop", () => {
      if (!refused.delete(i)) refused.add(i);
      arrange();
    }, { "aria-label": `Drop ${name}`, "aria-pressed": "false" });
    const told = el("span", { class: "play-fate" });
    const item = el("li", {}, el("span", {}, el("b", {}, String(i)),
      ` works ${works(i)}, writes ${[...batch.rows[i]].join(" and ")}`), told,
    el("span", { class: "play-buttons" }, buttons, drop));
    return { item, drop, told };
  });

  function arrange() {
    const found = mine();
    const focused = document.activeElement;
    items.append(...order.map((i) => names[i].item));
    if (items.contains(focused)) focused.focus();
    for (const i of all) {
      names[i].drop.setAttribute("aria-pressed", String(refused.has(i)));
      names[i].told.textContent = fate(found, i);
      names[i].told.className = `play-fate play-word-${fate(found, i).split(" ")[0]}`;
    }
    counted.textContent = `Your order: ${sum(found)}`;
    ownTable.replaceChildren(folded(found));
    own.redraw();
    asked.tell();
  }
  const asked = Play.guess({
    question: () => "Now your own order. What is the fewest that any order can have?",
    label: "Your guess", values: [...all, all.length], at: 0,
    format: (n) => `${n} of ${all.length}`,
    truth: () => `No schedule has fewer than ${batch.best.violations}, which is proven; `
      + `yours has ${mine().violations}.`,
    see: () => { beside.hidden = false; besides.redraw(); },
    hide: () => { beside.hidden = true; },
  });
  // The order starts as that of the first policy, so that it would tell what that does.
  const closed = el("p", {}, `Guess above how many ${first.title} violates, and this part `
    + "opens: your order starts as that one.");
  const hand = el("div", { hidden: "" },
    el("p", {}, "A transaction enters the log when it, and all that stand before it, "
      + "have arrived; rows are locked in that order."),
    items, el("div", { class: "play-buttons" },
      Play.button("Order of arrival, nothing dropped", () => {
        order = [...all];
        refused = new Set();
        arrange();
      })),
    counted, own, ownTable, asked.node, beside);
  const made = el("section", { "aria-label": "Schedule player" },
    el("p", { class: "play-title" }, "Watch a policy"), choose.node, question.node,
    picture, player,
    el("p", { class: "play-title" }, "Do better by hand"),
    closed, hand);
  arrange();
  return made;
};
