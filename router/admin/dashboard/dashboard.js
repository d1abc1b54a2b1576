// Once a second: ask, and show. A router that stops answering dims the page; the next answer brightens it.

const find = (id) => document.getElementById(id);
const picture = new Picture(find("picture"));
const percentiles = () => [
  { name: "p50", color: "--decode" }, { name: "p95", color: "--prefill" }, { name: "p99", color: "--bad", opacity: .75 },
];
const charts = {
  ttft: new Chart(find("charts"), "Time to first token", "ms", percentiles()),
  tpot: new Chart(find("charts"), "Time per output token", "ms", percentiles()),
  output: new Chart(find("charts"), "Output tokens per second", "", [{ name: "tok/s", color: "--decode", filled: true }]),
  requests: new Chart(find("charts"), "Requests per second", "", [
    { name: "answered", color: "--router", filled: true }, { name: "refused or failed", color: "--bad" },
  ]),
};
const percent = (v) => v === null ? "–" : `${Math.round(100 * v)} %`;

const tails = ([, p95, p99]) => { // one unit where both have the same
  const [low, unit] = ms(p95), [high, last] = ms(p99);
  return `p95 ${low}${unit === last ? "" : ` ${unit}`}, p99 ${high} ${last}`.trim();
};

const TILES = [
  ["Requests", (n) => [n.requests_per_s.toFixed(1), "/s"], (n) => `${(60 * n.requests_per_s).toFixed(0)} a minute`],
  ["Output", (n) => [plain(n.output_tokens_per_s), "tok/s"], (n) => `prompts ${plain(n.prompt_tokens_per_s)} tok/s`],
  ["TTFT, p50", (n) => ms(n.ttft_ms[0]), (n) => tails(n.ttft_ms)],
  ["TPOT, p50", (n) => ms(n.tpot_ms[0]), (n) => tails(n.tpot_ms)],
  ["Prefix cache hits", (n) => [percent(n.cache_hit_ratio), ""], () => "of prompt tokens"],
  ["Errors", (n) => [n.errors_per_s ? n.errors_per_s.toFixed(2) : "0", "/s"], (n) => `${n.refused_per_s ? n.refused_per_s.toFixed(2) : "none"} refused`],
];
const COLUMNS = [
  ["Node"], ["State"], ["KV"], ["Running"], ["Waiting"], ["Output tok/s"], ["Prompt tok/s"], ["Cache hits"], ["Step"], ["Preempted"], ["Epoch"],
];

function element(name, parent, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
  return made;
}

for (const [title] of COLUMNS) element("th", find("columns"), title);
const tiles = TILES.map(([title]) => {
  const tile = element("div", find("tiles"), undefined, "card tile");
  element("h2", tile, title);
  return { tile, value: element("b", tile), small: element("small", tile) };
});

function showTiles(now) {
  TILES.forEach(([, value, small], i) => {
    const [number, unit] = value(now);
    tiles[i].value.textContent = number;
    if (unit) element("span", tiles[i].value, unit);
    tiles[i].small.textContent = small(now);
  });
  tiles[5].tile.classList.toggle("bad", now.errors_per_s > 0);
}

function since(epoch) { // microseconds since 1970: when this incarnation began
  const seconds = Math.max(0, Date.now() / 1000 - epoch / 1e6);
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

function showNodes(nodes) {
  const rows = nodes.map((node) => {
    const row = document.createElement("tr"), name = element("td", row);
    element("span", name, undefined, `dot ${node.state}`);
    element("span", name, short(node.node_id), "name");
    element("td", row, node.state);
    const kv = cell(row, "KV"), bar = element("span", kv, undefined, "bar"), svg = document.createElementNS(SVG, "svg");
    kv.className = "kv"; bar.append(svg);
    shape("rect", { class: "cached-fill", width: 90 * Math.min(1, node.kv_usage + node.kv_cached), height: 7 }, svg);
    shape("rect", { class: `${node.role}-fill`, width: 90 * node.kv_usage, height: 7 }, svg);
    element("span", kv, percent(node.kv_usage), "share");
    cell(row, "Running", node.num_running); cell(row, "Waiting", node.num_waiting);
    cell(row, "Output tok/s", plain(node.output_tokens_per_s)); cell(row, "Prompt tok/s", plain(node.prompt_tokens_per_s));
    cell(row, "Cache hits", percent(node.cache_hit_ratio)); cell(row, "Step", node.step_ms ? `${plain(node.step_ms)} ms` : "–");
    cell(row, "Preempted", node.preemptions_per_min ? `${plain(node.preemptions_per_min)}/min` : "0");
    const epoch = cell(row, "Epoch", `${since(node.epoch)} ago`);
    epoch.classList.add("dim"); epoch.title = `epoch ${node.epoch}, ${node.address}`;
    return row;
  });
  find("rows").replaceChildren(...rows);
}

function cell(row, label, text) {
  const made = element("td", row, text);
  made.dataset.label = label;
  return made;
}

function show(fleet) {
  find("models").textContent = fleet.models.join(", ");
  find("asked").textContent = `seen by ${short(fleet.router_id)}, ${new Date(fleet.time * 1000).toLocaleTimeString()}`;
  find("verdict").dataset.pool = fleet.bottleneck.pool;
  if (find("words").textContent !== fleet.bottleneck.words) find("words").textContent = fleet.bottleneck.words;
  showTiles(fleet.now);
  picture.show(fleet);
  const h = fleet.history, columns = (rows) => [0, 1, 2].map((k) => rows.map((row) => row[k]));
  charts.ttft.show(columns(h.ttft_ms), h.slot_s);
  charts.tpot.show(columns(h.tpot_ms), h.slot_s);
  charts.output.show([h.output_tokens_per_s], h.slot_s);
  charts.requests.show([h.requests_per_s, h.errors_per_s], h.slot_s);
  showNodes(fleet.nodes);
}

let latest = null;
async function look() {
  try {
    const answer = await fetch("/admin/fleet", { signal: AbortSignal.timeout(4000) });
    if (answer.status === 401) { location.replace("/login"); return; }
    if (!answer.ok) throw new Error(String(answer.status));
    latest = await answer.json();
    show(latest);
    document.body.classList.remove("silent");
    document.body.dataset.shown = String(Number(document.body.dataset.shown || 0) + 1);
  } catch (error) {
    if (!(error instanceof TypeError) && error.name !== "TimeoutError" && !/^\d+$/.test(error.message)) throw error;
    document.body.classList.add("silent");
    find("verdict").dataset.pool = "silent";
    find("words").textContent = "This router does not answer. Trying again.";
  } finally {
    setTimeout(look, 1000);
  }
}
addEventListener("resize", () => { if (latest) show(latest); });
look();
