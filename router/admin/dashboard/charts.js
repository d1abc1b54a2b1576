// Lines over the last minutes. A chart has series of equal length, the oldest value first; null is a gap.

const HEIGHT = 150, PAD = { left: 40, right: 6, top: 8, bottom: 20 };

class Chart {
  constructor(parent, title, unit, series) {
    this.series = series; this.unit = unit; this.at = null;
    const card = document.createElement("div"), head = document.createElement("header"), name = document.createElement("h2");
    card.className = "card chart"; name.textContent = title;
    this.legend = document.createElement("div"); this.legend.className = "legend";
    for (const one of series) {
      const item = document.createElement("span"), mark = document.createElement("i"), value = document.createElement("span");
      mark.style.background = `var(${one.color})`; one.value = value;
      item.append(mark, value); this.legend.append(item);
    }
    head.append(name, this.legend);
    this.svg = document.createElementNS(SVG, "svg");
    card.append(head, this.svg); parent.append(card);
    this.svg.addEventListener("pointermove", (event) => { this.at = event.offsetX; this.draw(); });
    this.svg.addEventListener("pointerleave", () => { this.at = null; this.draw(); });
  }

  show(columns, slotSeconds) { this.columns = columns; this.slot = slotSeconds; this.draw(); }

  draw() {
    if (!this.columns) return;
    const width = Math.max(this.svg.clientWidth, 120), length = this.columns[0].length, svg = this.svg;
    const top = ceiling(Math.max(...this.columns.flat().filter((v) => v !== null), 0));
    const x = (i) => PAD.left + (i / (length - 1)) * (width - PAD.left - PAD.right);
    const y = (v) => HEIGHT - PAD.bottom - (v / top) * (HEIGHT - PAD.top - PAD.bottom);
    svg.replaceChildren(); svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    for (const part of [0, 0.5, 1]) {
      shape("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: y(top * part), y2: y(top * part) }, svg);
      shape("text", { class: "soft", x: PAD.left - 8, y: y(top * part) + 4, "text-anchor": "end" }, svg, this.unit === "ms" && top >= 2000 && part ? `${plain((top * part) / 1000)} s` : plain(top * part));
    }
    const minutes = Math.floor(((length - 1) * this.slot) / 60);
    for (let m = minutes; m >= 0; m -= width < 380 ? 2 : 1) {
      const i = length - 1 - (m * 60) / this.slot;
      shape("text", { class: "soft", x: x(i), y: HEIGHT - 4, "text-anchor": m ? "middle" : "end" }, svg, m ? `−${m} min` : "now");
    }
    this.series.forEach((one, k) => this.line(one, this.columns[k], x, y));
    this.cursor(width, length, x);
  }

  line(one, column, x, y) {
    const runs = [];
    column.forEach((v, i) => { if (v !== null) (i && column[i - 1] !== null ? runs.at(-1) : runs[runs.push([]) - 1]).push([x(i), y(v)]); });
    for (const run of runs) {
      const d = `M${run.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" L")}`;
      if (one.filled) shape("path", { class: "under", fill: `var(${one.color})`, d: `${d} L${run.at(-1)[0]},${y(0)} L${run[0][0]},${y(0)} Z` }, this.svg);
      shape("path", { class: "curve", stroke: `var(${one.color})`, "stroke-opacity": one.opacity ?? 1, d: run.length > 1 ? d : `${d} l.1,0` }, this.svg);
    }
  }

  cursor(width, length, x) {
    let i = length - 1;
    if (this.at !== null) {
      i = Math.min(length - 1, Math.max(0, Math.round(((this.at - PAD.left) / (width - PAD.left - PAD.right)) * (length - 1))));
      shape("line", { class: "cursor", x1: x(i), x2: x(i), y1: PAD.top, y2: HEIGHT - PAD.bottom }, this.svg);
    }
    this.series.forEach((one, k) => {
      let v = this.columns[k][i];
      for (let back = 1; this.at === null && v === null && back < 4; back++) v = this.columns[k][i - back];
      one.value.textContent = `${one.name} ${v === null || v === undefined ? "–" : this.unit === "ms" ? ms(v).join(" ") : plain(v)}`;
    });
  }
}

function ceiling(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((m) => m * unit).find((limit) => limit >= value * 1.02) ?? 10 * unit * 1.5;
}

function ms(value) { // as a number and its unit
  if (value === null) return ["–", ""];
  return value >= 1000 ? [(value / 1000).toFixed(value >= 9950 ? 1 : 2), "s"] : [plain(value), "ms"];
}

function plain(value) {
  if (value >= 10000) return `${Math.round(value / 1000)}k`;
  if (value >= 1000) return `${(value / 1000).toFixed(1)}k`;
  if (value >= 100 || value === 0) return `${Math.round(value)}`;
  return `${Number(value.toPrecision(value >= 10 ? 3 : 2))}`;
}
