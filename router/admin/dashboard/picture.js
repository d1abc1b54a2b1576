"use strict";
// The fleet as a picture: routers, the two pools, Redis, and what flows between them. Elements are kept from one second
// to the next, so that what moves goes on moving; they are made anew only when nodes come or go, or the width changes.

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

const short = (id) => id.split(".")[0];
const bytes = (n) => n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB/s` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB/s` : `${Math.round(n / 1e3)} kB/s`;
const MAX_SHOWN = 9;

class Picture {
  constructor(svg) { this.svg = svg; this.key = ""; }

  show(fleet) {
    const width = Math.max(this.svg.clientWidth, 280);
    const pools = {
      router: shown(fleet.routers), prefill: shown(fleet.nodes.filter((n) => n.role === "prefill")),
      decode: shown(fleet.nodes.filter((n) => n.role === "decode")),
    };
    const key = JSON.stringify([width, Object.values(pools).map((p) => [p.nodes.map((n) => n.node_id), p.more])]);
    if (key !== this.key) { this.key = key; this.build(width, pools); }
    this.update(fleet, pools);
  }

  build(width, pools) {
    this.svg.replaceChildren();
    const narrow = width < 640;
    const roles = Object.keys(pools).filter((role) => pools[role].nodes.length);
    this.places = narrow ? inRows(width, pools, roles) : inColumns(width, pools, roles);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.places.height}`);
    this.svg.setAttribute("height", this.places.height);
    this.links = shape("g", {}, this.svg);
    const labels = shape("g", {}, this.svg), boxes = shape("g", {}, this.svg);
    this.rates = shape("g", {}, this.svg);
    this.flows = {}; this.boxes = {};
    for (const label of this.places.labels) shape("text", { class: "pool", x: label.x, y: label.y }, labels, label.text);
    for (const role of roles) for (const node of pools[role].nodes) this.boxes[node.node_id] = box(boxes, role, this.places.at[node.node_id]);
    for (const { at, text } of this.places.more) shape("text", { class: "soft", x: at.x + at.w / 2, y: at.y + 14, "text-anchor": "middle" }, boxes, text);
    this.redis = redis(boxes, this.places.redis);
    this.connect(pools, narrow);
  }

  connect(pools, narrow) {
    const at = this.places.at, sides = narrow ? ["bottom", "top"] : ["right", "left"];
    const join = (kind, from, to, [out, into] = sides) => {
      const d = curve(at[from], at[to], out, into);
      shape("path", { class: "link", d }, this.links);
      this.flows[`${kind}:${from}>${to}`] = shape("path", { class: `flow ${kind}`, d }, this.links);
    };
    const first = pools.prefill.nodes.length ? pools.prefill.nodes : pools.decode.nodes;
    for (const r of pools.router.nodes) for (const n of first) join("requests", r.node_id, n.node_id);
    for (const p of pools.prefill.nodes) for (const d of pools.decode.nodes) join("kv", p.node_id, d.node_id);
    this.back(pools, narrow);
    shape("path", { class: "link index", d: narrow ? below(this.places) : lower(this.places) }, this.links);
  }

  back(pools, narrow) { // tokens: from the decode pool back to the routers, over everything
    const { ends, at } = this.places, decode = pools.decode.nodes[0], router = pools.router.nodes[0];
    if (!decode || !router || !pools.prefill.nodes.length || narrow) return;
    const from = at[decode.node_id], to = at[router.node_id], y = ends.top - 4;
    const x1 = from.x + from.w / 2, x2 = to.x + to.w / 2;
    const d = `M${x1},${from.y} C${x1},${y - 22} ${x1 - 60},${y - 18} ${x1 - 130},${y - 18} L${x2 + 130},${y - 18} C${x2 + 60},${y - 18} ${x2},${y - 22} ${x2},${to.y}`;
    shape("path", { class: "link", d }, this.links);
    this.flows["tokens"] = shape("path", { class: "flow tokens", d }, this.links);
    this.tokens = shape("text", { class: "rate", x: (x1 + x2) / 2, y: y - 14, "text-anchor": "middle" }, this.rates);
  }

  update(fleet, pools) {
    for (const role of Object.keys(pools)) for (const node of pools[role].nodes) fill(this.boxes[node.node_id], role, node);
    this.redis.state.setAttribute("class", fleet.redis.answers ? "dot-ready" : "dot-lost");
    this.redis.text.textContent = fleet.redis.answers ? `${fleet.redis.num_index_blocks.toLocaleString()} blocks indexed` : "does not answer";
    const rates = Object.fromEntries(fleet.transfers.map((t) => [`kv:${t.prefill}>${t.decode}`, t]));
    const first = pools.prefill.nodes.length ? pools.prefill.nodes : pools.decode.nodes;
    const load = first.reduce((sum, n) => sum + n.prompt_tokens_per_s, 0);
    for (const [name, path] of Object.entries(this.flows)) {
      if (name.startsWith("kv:")) move(path, rates[name]?.bytes_per_s || 0, 4e6);
      else if (name === "tokens") move(path, fleet.now.output_tokens_per_s, 400);
      else {
        const [from, to] = name.slice(9).split(">");
        const asked = fleet.routers.find((r) => r.node_id === from)?.requests_per_s || 0;
        const part = first.find((n) => n.node_id === to)?.prompt_tokens_per_s || 0;
        move(path, load ? (asked * part) / load : 0, 6);
      }
    }
    this.tell(fleet, rates);
  }

  tell(fleet, rates) {
    if (this.tokens) this.tokens.textContent = fleet.now.output_tokens_per_s >= 1 ? `${Math.round(fleet.now.output_tokens_per_s).toLocaleString()} tokens/s` : "";
    const total = Object.values(rates).reduce((sum, t) => sum + t.bytes_per_s, 0);
    const at = this.places.between;
    if (!at) return;
    if (!this.total || this.total.parentNode !== this.rates) this.total = shape("text", { class: "rate", x: at.x, y: at.y, "text-anchor": at.anchor }, this.rates);
    this.total.textContent = total >= 500 ? `KV ${bytes(total)}` : "";
  }
}

function shown(nodes) { return { nodes: nodes.slice(0, MAX_SHOWN), more: Math.max(0, nodes.length - MAX_SHOWN) }; }

const NAMES = { router: "Routers", prefill: "Prefill", decode: "Decode" };

function inColumns(width, pools, roles) {
  const counts = roles.map((role) => pools[role].nodes.length), most = Math.max(...counts);
  const h = most > 6 ? 46 : 58, gap = most > 6 ? 10 : 16, top = 62, w = Math.min(228, (width - 120) / roles.length);
  const tall = most * (h + gap) - gap, at = {}, labels = [], more = [];
  roles.forEach((role, column) => {
    const x = roles.length === 1 ? 0 : (column * (width - w)) / (roles.length - 1);
    const nodes = pools[role].nodes, y0 = top + (tall - (nodes.length * (h + gap) - gap)) / 2;
    nodes.forEach((node, row) => { at[node.node_id] = { x, y: y0 + row * (h + gap), w, h }; });
    labels.push({ x: x + 2, y: y0 - 9, text: NAMES[role] });
    if (pools[role].more) more.push({ at: { x, y: y0 + nodes.length * (h + gap) - gap, w }, text: `and ${pools[role].more} more` });
  });
  const redis = { x: (width - 228) / 2, y: top + tall + 40, w: 228, h: 38 };
  const last = at[pools[roles.at(-1)].nodes[0].node_id], middle = roles.length > 2 ? (width - w) / 2 + w : w;
  const between = roles.length > 2 ? { x: (middle + last.x) / 2, y: top + tall + 18, anchor: "middle" } : null;
  return { at, labels, more, redis, between, height: redis.y + redis.h + 6, ends: { top: top - 22 }, roles, pools, width };
}

function inRows(width, pools, roles) {
  const at = {}, labels = [], more = [], gap = 10;
  let y = 20;
  for (const role of roles) {
    const nodes = pools[role].nodes, columns = Math.min(nodes.length, 2), h = 58, w = (width - gap * (columns - 1)) / columns;
    labels.push({ x: 2, y: y - 7, text: NAMES[role] });
    nodes.forEach((node, i) => { at[node.node_id] = { x: (i % columns) * (w + gap), y: y + Math.floor(i / columns) * (h + gap), w, h }; });
    y += Math.ceil(nodes.length / columns) * (h + gap) - gap;
    if (pools[role].more) { more.push({ at: { x: 0, y, w: width }, text: `and ${pools[role].more} more` }); y += 16; }
    y += 62;
  }
  const redis = { x: 0, y: y - 26, w: width, h: 38 };
  const first = pools.decode.nodes[0] && at[pools.decode.nodes[0].node_id];
  const between = pools.prefill.nodes.length && first ? { x: width - 2, y: first.y - 10, anchor: "end" } : null;
  return { at, labels, more, redis, between, height: redis.y + redis.h + 4, ends: { top: 0 }, roles, pools, width };
}

function lower({ at, redis, roles, pools }) { // Redis knows of everybody
  return roles.map((role) => {
    const node = at[pools[role].nodes.at(-1).node_id], x = node.x + node.w / 2, y = redis.y + redis.h / 2;
    if (Math.abs(x - redis.x - redis.w / 2) < redis.w / 2) return `M${x},${node.y + node.h} L${x},${redis.y}`;
    const end = x < redis.x ? redis.x : redis.x + redis.w;
    return `M${x},${node.y + node.h} C${x},${y} ${x},${y} ${x + Math.sign(end - x) * 30},${y} L${end},${y}`;
  }).join(" ");
}

function below({ at, redis, pools }) {
  return pools.decode.nodes.slice(-2).map(({ node_id: id }) => `M${at[id].x + at[id].w / 2},${at[id].y + at[id].h} V${redis.y}`).join(" ");
}

function point({ x, y, w, h }, side) {
  return { left: [x, y + h / 2], right: [x + w, y + h / 2], top: [x + w / 2, y], bottom: [x + w / 2, y + h] }[side];
}

function curve(from, to, out, into) {
  const [x1, y1] = point(from, out), [x2, y2] = point(to, into), flat = out === "right";
  const bend = flat ? (x2 - x1) / 2 : (y2 - y1) / 2;
  return flat ? `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2},${y2}` : `M${x1},${y1} C${x1},${y1 + bend} ${x2},${y2 - bend} ${x2},${y2}`;
}

function move(path, rate, typical) {
  path.classList.toggle("on", rate > 0);
  if (!rate) return;
  const strength = Math.min(2, Math.max(0.25, Math.sqrt(rate / typical)));
  path.style.strokeWidth = `${2 + 1.6 * strength}px`;
  const wanted = `${(1.5 / strength).toFixed(1)}s`;
  if (path.style.animationDuration !== wanted) path.style.animationDuration = wanted;
}

function box(parent, role, at) {
  const g = shape("g", { transform: `translate(${at.x},${at.y})` }, parent), low = at.h < 50;
  const made = { frame: shape("rect", { class: "box", width: at.w, height: at.h, rx: 9 }, g), at };
  shape("rect", { class: `${role}-fill`, x: 0, y: 9, width: 3, height: at.h - 18, rx: 1.5 }, g);
  made.title = shape("title", {}, g);
  made.dot = shape("circle", { cx: 17, cy: low ? 15 : 19, r: 3.6 }, g);
  made.name = shape("text", { class: "title", x: 27, y: low ? 19 : 23 }, g);
  made.right = shape("text", { class: "soft", x: at.w - 12, y: low ? 19 : 23, "text-anchor": "end" }, g);
  made.left = shape("text", { class: "soft", x: 14, y: at.h - (low ? 11 : 14) }, g);
  if (role === "router") return made;
  const w = made.bar = Math.max(40, at.w * 0.3), x = at.w - 12 - w, y = at.h - (low ? 19 : 22);
  shape("rect", { class: "track", x, y, width: w, height: 7, rx: 3.5 }, g);
  made.cached = shape("rect", { class: "cached-fill", x, y, height: 7, rx: 3.5, width: 0 }, g);
  made.used = shape("rect", { class: `${role}-fill`, x, y, height: 7, rx: 3.5, width: 0 }, g);
  return made;
}

function fit(element, texts, room) { // the first that there is room for, else the last
  for (const text of texts) {
    element.textContent = text;
    if (element.getComputedTextLength() <= room) return;
  }
}

function* shortened(name) { // of pods' long names: it is their ends that tell them apart
  yield name;
  for (let kept = name.length - 2; kept >= 4; kept--) yield `${name.slice(0, Math.ceil(kept * .4))}…${name.slice(Math.ceil(kept * .4) - kept)}`;
}

function fill(made, role, node) {
  const state = node.answers === false ? "lost" : node.state;
  made.frame.setAttribute("class", `box ${state}`);
  made.dot.setAttribute("class", `dot-${state}`);
  made.title.textContent = node.node_id;
  if (role === "router") {
    made.right.textContent = node.answers === false ? "not reached" : `${(node.requests_per_s ?? 0).toFixed(1)} req/s`;
    made.left.textContent = node.answers === false ? "" : `${node.num_in_flight} in flight${node.num_waiting ? `, ${node.num_waiting} unplaced` : ""}`;
    fit(made.name, shortened(short(node.node_id)), made.at.w - 44 - made.right.getComputedTextLength());
    return;
  }
  made.right.textContent = state === "ready" ? `KV ${Math.round(100 * node.kv_usage)} %` : state;
  fit(made.name, shortened(short(node.node_id)), made.at.w - 44 - made.right.getComputedTextLength());
  const { num_running: run, num_waiting: wait } = node;
  fit(made.left, [`${run} running, ${wait} waiting`, `${run} run ${wait} wait`, `${run} / ${wait}`], made.at.w - made.bar - 32);
  made.used.setAttribute("width", Math.max(node.kv_usage * made.bar, node.kv_usage ? 3 : 0));
  made.cached.setAttribute("width", Math.min(1, node.kv_usage + node.kv_cached) * made.bar);
}

function redis(parent, at) {
  const g = shape("g", { transform: `translate(${at.x},${at.y})` }, parent);
  shape("rect", { class: "box", width: at.w, height: at.h, rx: 9 }, g);
  const state = shape("circle", { cx: 17, cy: at.h / 2, r: 3.6 }, g);
  shape("text", { class: "title", x: 27, y: at.h / 2 + 4 }, g, "Redis");
  return { state, text: shape("text", { class: "soft", x: at.w - 12, y: at.h / 2 + 4, "text-anchor": "end" }, g) };
}
