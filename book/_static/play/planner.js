// Where the layers of a model go, what a step takes and how long: thesis_lib's plan for
// a step of one token, and its error messages.

// A geometry of one's own, in 16 bits and in the shape of LLaMA.
Play.ownGeometry = (known, { layers, hidden, intermediate, heads, kv_heads, vocab }) => {
  const head_dim = hidden / heads, blocks = (n) =>
    Math.ceil(n / known.alignment) * known.alignment;
  const matrices = hidden * head_dim * 2 * (heads + kv_heads)
    + 3 * hidden * intermediate;
  const parameters = layers * (matrices + 2 * hidden) + hidden + 2 * vocab * hidden;
  const read_bytes = blocks(2 * (matrices + 2 * hidden));
  const outer = 2 * (2 * vocab * hidden + hidden);
  return { name: "own", architecture: "llama", layers, hidden, intermediate, heads,
    kv_heads, vocab, head_dim, most_positions: 0, total_bytes: 2 * parameters,
    flops_per_token: 2 * (layers * matrices + vocab * hidden),
    stored: { bf16: { read_bytes, staging_bytes: read_bytes + known.alignment,
      decoded_bytes: null, scratch_bytes: 0, scratch_per_sequence: 0,
      outer_bytes: blocks(outer) + 3 * known.alignment + 4 * head_dim } } };
};

// Why such a geometry is none; null if it is one whose bytes these formulae say.
Play.refuseGeometry = ({ layers, hidden, intermediate, heads, kv_heads, vocab }) => {
  const numbers = [layers, hidden, intermediate, heads, kv_heads, vocab];
  if (!numbers.every((n) => Number.isInteger(n) && n > 0))
    return "Every number has to be whole and positive.";
  if (layers < 2) return "Expected two layers at least.";
  if (hidden % (2 * heads)) return "The width has to be an even multiple of the heads.";
  if (heads % kv_heads) return "The heads have to be a multiple of the KV heads.";
  if (intermediate < 2 * hidden)
    return "Expected a feed-forward block at least twice as wide as the model.";
  return null;
};

Play.footprint = (spec, weights, batch, context) => {
  const stored = spec.stored[weights], keys = spec.kv_heads * spec.head_dim;
  const h = spec.hidden, opt = spec.architecture === "opt";
  // A layer's worst moment copies the keys, or holds all products of its feed-forward
  // block; the step's worst one may be the logits, at its end.
  const copying = context * keys + (opt ? 6 * h : 4 * h + keys);
  const feeding = (opt ? 2 : 3) * spec.intermediate + 4 * h;
  const numbers = opt ? 12 * context + 8 : 8;
  const rotation = opt ? 0 : 4 * spec.head_dim + 8;
  return { ...stored,
    kv_bytes: 2 * spec.layers * batch * context * keys * 2,
    activation_bytes: Math.max(
      batch * (2 * Math.max(copying, feeding) + numbers) + rotation,
      batch * (2 * (spec.vocab + h) + 8)),
    scratch_bytes: stored.scratch_bytes + batch * stored.scratch_per_sequence };
};

Play.plan = (known, spec, at) => {
  const { weights, batch, context, device_bytes, host_bytes } = at;
  if (spec.most_positions && context > spec.most_positions)
    return { refused: "positions", most: spec.most_positions };
  const needs = (n, c) => Play.footprint(spec, weights, n, c);
  const needed = needs(batch, context), staging = needed.staging_bytes;
  const step = (f) => f.kv_bytes + f.activation_bytes + f.scratch_bytes;
  const parts = (buffers, layers) => ({ outer: needed.outer_bytes,
    ring: buffers * staging, resident: layers * staging, kv: needed.kv_bytes,
    activations: needed.activation_bytes + needed.scratch_bytes });
  const held = (all) => Object.values(all).reduce((a, b) => a + b);
  const spare = device_bytes - needed.outer_bytes - step(needed);
  const wanted = Math.min(at.ring, spec.layers), short = wanted * staging - spare;
  let ring = wanted, resident = spec.layers;
  if (spare >= spec.layers * staging) ring = 0;
  else if (short > 0) {
    // The largest smaller number at which the step leaves room; null if none does.
    const fitting = (most, bytes) => {
      let low = 0, high = most - 1;
      while (low < high) {
        const middle = Math.ceil((low + high) / 2);
        if (bytes(middle) <= step(needed) - short) low = middle; else high = middle - 1;
      }
      return low || null;
    };
    const fewer = wanted - Math.ceil(short / staging);
    return { refused: "device", short, parts: parts(wanted, 0), ring: fewer > 0 ? fewer : null,
      context: fitting(context, (c) => step(needs(batch, c))),
      batch: fitting(batch, (n) => step(needs(n, context))) };
  } else resident = Math.floor((spare - ring * staging) / staging);
  const streamed = spec.layers - resident;
  let host = 0, host_buffers = 0;
  if (host_bytes) {
    const room = Math.floor(host_bytes / staging);
    if (room < streamed && room < known.host_buffers)
      return { refused: "host", needs: known.host_buffers * staging };
    host = room >= streamed ? streamed : room - known.host_buffers;
    host_buffers = room >= streamed ? 0 : known.host_buffers;
  }
  const disk = streamed - host, decoded = needed.decoded_bytes || 0;
  const disk_s = disk * needed.read_bytes / at.disk_bytes_per_s;
  const link_s = host_bytes
    ? streamed * (decoded || needed.read_bytes) / at.link_bytes_per_s : 0;
  const decode_s = weights === "lossless"
    ? disk * decoded / known.decode_bytes_per_s : 0;
  const reading = Math.max(disk_s, link_s, decode_s);
  const computing = spec.total_bytes / known.weight_bytes_per_s
    + batch * spec.flops_per_token / known.flops_per_s;
  const step_s = ring === 1 ? reading + computing : Math.max(reading, computing);
  const placed = parts(ring, resident);
  return { refused: null, ring, resident, host, disk, parts: placed,
    device_peak_bytes: held(placed),
    host_peak_bytes: (host + host_buffers) * staging,
    disk_bytes: disk * needed.read_bytes, step_s, s_per_token: step_s / batch,
    limit: computing >= reading ? "compute" : link_s >= reading ? "link"
      : decode_s >= reading ? "decode" : "disk" };
};

Play.parts.planner = (root, known) => {
  const { el, svg, bytes, enough, seconds, whole } = Play, GiB = 2 ** 30;
  const OWN = "own numbers", own = { layers: 80, hidden: 8192, intermediate: 22016,
    heads: 64, kv_heads: 8, vocab: 32000 };
  const words = { link: "the link from host memory", disk: "the disk",
    decode: "decoding", compute: "computing" };
  let model = known.geometries[0].name;
  const chosen = () => model === OWN ? Play.ownGeometry(known, own)
    : known.geometries.find((each) => each.name === model);

  const titles = [...known.geometries.map((each) => each.name), OWN];
  const models = Play.select("Model", titles.map((name) => [name, known.titles[name] ?? name]), (name) => {
    model = name;
    numbers.hidden = name !== OWN;
    for (const option of weights.input.options)
      option.disabled = name === OWN && option.value !== "bf16";
    if (name === OWN) weights.input.value = "bf16";
    change();
  });
  const weights = Play.select("Weights", Object.keys(known.geometries[0].stored)
    .map((word) => [word, known.titles[word]]), () => change());
  const labels = { layers: "Layers", hidden: "Width", intermediate: "Feed-forward width",
    heads: "Heads", kv_heads: "KV heads", vocab: "Vocabulary" };
  const numbers = el("div", { hidden: "" }, Object.entries(labels).map(([name, label]) => {
    const id = Play.id();
    return el("div", { class: "play-input" }, el("label", { for: id }, label),
      el("input", { type: "number", id, min: 1, step: 1, value: own[name],
        oninput: (event) => { own[name] = Number(event.target.value); change(); } }),
      el("span"));
  }));
  const slider = (label, values, value, format) => Play.slider({ label, values,
    at: values.indexOf(value), format, change: () => change() });
  const gib = (n) => `${n} GiB`, rate = (n) => `${n} GB/s`;
  const inputs = {
    device: slider("Device memory",
      [1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192], 8, gib),
    host: slider("Host memory beside it", [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512], 0,
      (n) => n ? gib(n) : "none"),
    link: slider("Link to the device", [1, 2, 4, 8, 12, 16, 25, 32, 50, 64], 25, rate),
    disk: slider("Disk", [0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 14], 7, rate),
    context: slider("Context",
      [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072], 512,
      (n) => `${whole(n)} positions`),
    batch: slider("Sequences at once", [1, 2, 4, 8, 16, 32, 64, 128], 1, String),
    ring: slider("Staging buffers", [1, 2, 3, 4, 6, 8], 3, String),
  };
  const wrong = () => model === OWN ? Play.refuseGeometry(own) : null;
  const found = () => Play.plan(known, chosen(), { weights: weights.input.value,
    batch: inputs.batch.value, context: inputs.context.value, ring: inputs.ring.value,
    device_bytes: inputs.device.value * GiB, host_bytes: inputs.host.value * GiB,
    link_bytes_per_s: inputs.link.value * 1e9, disk_bytes_per_s: inputs.disk.value * 1e9 });

  function told() {
    const bad = wrong();
    if (bad) return bad;
    const plan = found();
    if (plan.refused === "positions") return "Refused: the model was made for "
      + `${whole(plan.most)} positions; shorten the context.`;
    if (plan.refused === "host") return "Refused: host memory needs "
      + `${enough(plan.needs)} at least, for what comes from the disk; or none.`;
    if (plan.refused) {
      const ways = [`give the device ${enough(plan.short)} more`];
      if (plan.ring) ways.push(`use ${plan.ring} staging buffer${plan.ring > 1 ? "s" : ""}`);
      if (plan.context) ways.push(`shorten the context to ${whole(plan.context)} positions`);
      if (plan.batch) ways.push(`lower the sequences to ${plan.batch}`);
      return `Refused: the device is short by ${enough(plan.short)}. `
        + `To make it run, ${ways.join(", or ")}.`;
    }
    return `${seconds(plan.s_per_token)} a token, bound by ${words[plan.limit]}; `
      + `the device holds ${enough(plan.device_peak_bytes)} at most.`;
  }

  const NAMES = { outer: "embedding and head", ring: "staging ring",
    resident: "resident layers", kv: "keys and values", activations: "activations" };
  function drawing(width) {
    const plan = wrong() ? null : found(), top = 20, tall = 30, gap = 30;
    const capacity = { device: inputs.device.value * GiB,
      host: inputs.host.value * GiB };
    const runs = question.seen && plan && !plan.refused;
    const tiers = [["device", capacity.device,
      question.seen && plan?.parts ? Object.entries(plan.parts) : []]];
    if (capacity.host) tiers.push(["host memory", capacity.host,
      runs ? [["host", plan.host_peak_bytes]] : []]);
    tiers.push(["disk", 0, runs ? [["disk", plan.disk_bytes]] : []]);
    const model_bytes = plan ? chosen().total_bytes : 0;
    tiers.push([`the model in 16 bits`, 0, [["model", model_bytes]]]);
    const words_of = ([name, size, parts]) => [name, [parts.length && bytes(sum(parts)),
      size && bytes(size)].filter((word) => word).join(" of ")]
      .filter((word) => word).join(": ");
    const sum = (parts) => parts.reduce((n, [, size]) => n + size, 0);
    const most = Math.max(...tiers.map(([, size, parts]) => Math.max(size, sum(parts))));
    const x = (n) => (width - 4) * n / most, height = tiers.length * (tall + gap);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height,
      role: "img", "aria-label": `Drawn to scale: ${tiers.map(words_of).join("; ")}` });
    tiers.forEach(([name, size, parts], row) => {
      const y = row * (tall + gap) + top;
      picture.append(svg("text", { x: 2, y: y - 5 }, words_of([name, size, parts])));
      let from = 0;
      for (const [part, n] of parts) {
        if (!n) continue;
        picture.append(svg("rect", { x: 2 + x(from), y, width: Math.max(x(n), 1),
          height: tall, class: `play-part-${part}` }, svg("title", {},
          `${NAMES[part] ?? name}: ${bytes(n)}`)));
        from += n;
      }
      if (size) picture.append(svg("rect", { x: 2, y, width: x(size), height: tall,
        class: "play-frame" }));
    });
    return picture;
  }

  function table() {
    const plan = wrong() ? null : found();
    if (!plan?.parts) return "";
    const where = [["on the device", plan.resident], ["in host memory", plan.host],
      ["on the disk", plan.disk]].map(([place, n]) => `${n} ${place}`).join(", ");
    return [el("p", {}, plan.refused ? "What the device would have to hold at least:"
      : `Layers: ${where}.`),
      el("ul", { class: "play-legend" }, Object.entries(plan.parts).map(([part, n]) =>
        el("li", {}, el("span", { class: `play-key play-part-${part}` }),
          `${NAMES[part]}: ${bytes(n)}`)))];
  }
  const picture = Play.drawn(drawing), rest = el("div", {});
  const guesses = [null, ...[-3, -2, -1, 0, 1, 2].flatMap((power) =>
    [1, 2, 5].map((digit) => digit * 10 ** power)), 1000];
  const question = Play.guess({
    question: () => "Will it run, and how long does a token take?",
    label: "Your guess", values: guesses, at: guesses.indexOf(1),
    format: (s) => s === null ? "refused" : `${seconds(s)} a token`,
    truth: told,
    see: () => { rest.hidden = false; show(); },
    hide: () => { rest.hidden = true; picture.redraw(); },
  });
  function show() {
    rest.replaceChildren(...[table()].flat());
    question.tell();
    picture.redraw();
  }
  const change = () => question.seen ? show() : picture.redraw();
  return el("section", { "aria-label": "Memory planner" }, models.node, numbers,
    weights.node, Object.values(inputs).map((each) => each.node), question.node, picture,
    rest);
};
