// Charts: drawn anew from the numbers that stand behind each still one, to hover, zoom, and change the axes.

const BOX = { width: 340, height: 190, left: 50, right: 333, top: 8, bottom: 166 };

class Chart {
  constructor(article, group) {
    this.group = group;
    this.article = article;
    this.title = article.querySelector("h3").textContent;
    this.plot = article.querySelector(".plot");
    this.cursor = null;
    this.take(article);
    this.svg = element("svg", { class: "curve", viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "slider", tabindex: 0 });
    this.plot.querySelector("svg").replaceWith(this.svg);
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.plot.append(this.tip);
    this.listen();
  }

  take(article) { // its numbers, from this page or from a newer one
    const { lines, uprights } = JSON.parse(article.querySelector(".plot script").textContent);
    Object.assign(this, { lines, uprights });
  }

  renew(article) {
    this.take(article);
    for (const part of [".last", ".note"]) this.article.querySelector(part).replaceWith(article.querySelector(part));
  }

  // Each line's points in the shown axis and range, before they are thinned.
  shown() {
    const { axis, base, logX, range } = this.group;
    return this.lines.map((line) => {
      const convert = converter(axis, base, this.group.runOf(line)) || ((x) => x);
      const points = line.x.map((x, i) => [convert(x), line.y[i]]).filter(([x]) => !logX || x > 0);
      const inside = range ? points.filter(([x]) => x >= range[0] && x <= range[1]) : points;
      return { ...line, convert, points: inside };
    });
  }

  draw() {
    const lines = this.shown();
    const xs = lines.flatMap(({ points }) => points.map(([x]) => x));
    let ys = lines.flatMap(({ points }) => points.map(([, y]) => y)).filter((y) => y !== null);
    const logY = this.group.logY && ys.some((y) => y > 0);
    if (logY) ys = ys.filter((y) => y > 0);
    const [x0, x1] = this.group.range || extent(xs);
    const [y0, y1] = ys.length ? extent(ys) : [0, 1];
    const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.05;
    this.x = scaleOf(xs.length ? x0 : 0, xs.length ? x1 : 1, BOX.left + 4, BOX.right - 4, this.group.logX);
    this.y = scaleOf(logY ? y0 / 1.05 : y0 - pad, logY ? y1 * 1.05 : y1 + pad, BOX.bottom, BOX.top, logY);
    this.drawn = lines.map((line) => ({ ...line, points: thinnedLine(line.points) }));
    this.ends = xs.length ? [x0, x1] : [0, 1];
    this.svg.replaceChildren(...this.axes(), ...this.paths(logY));
    this.hover = this.svg.appendChild(element("g"));
    this.describe();
    if (this.cursor !== null) this.point(this.cursor);
  }

  axes() {
    const across = this.y.ticks(5).flatMap((value) => [
      element("path", { d: `M${BOX.left} ${this.y.at(value)}H${BOX.right}`, class: "grid" }),
      element("text", { x: BOX.left - 6, y: this.y.at(value) + 3.5, "text-anchor": "end" }, short(value)),
    ]);
    const along = this.x.ticks(5).map((value) =>
      element("text", { x: this.x.at(value), y: BOX.height - 8, "text-anchor": "middle" }, short(value, 1e3)));
    const uprights = this.uprights.map((step) => {
      const convert = this.lines.length && converter(this.group.axis, this.group.base, this.group.runOf(this.lines[0]));
      const x = convert ? this.x.at(convert(step)) : NaN;
      return x >= BOX.left && x <= BOX.right ? element("path", { d: `M${x} ${BOX.top}V${BOX.bottom}`, class: "upright" }) : null;
    });
    const floor = element("path", { d: `M${BOX.left} ${BOX.bottom}H${BOX.right}`, class: "grid" });
    return [...across, floor, ...along, ...uprights.filter(Boolean)];
  }

  paths(logY) {
    return this.drawn.map(({ points, colour, dashed }) => {
      const there = points.map(([x, y]) => (y === null || (logY && y <= 0) ? null : [this.x.at(x), this.y.at(y)]));
      const sure = there.filter(Boolean);
      if (sure.length === 1) return element("circle", { cx: sure[0][0], cy: sure[0][1], r: 2.5, fill: `var(--c${colour})` });
      let pen = "M";
      const d = there.map((at) => {
        const piece = at ? `${pen}${at[0].toFixed(1)} ${at[1].toFixed(1)}` : "";
        pen = at ? "L" : "M";
        return piece;
      }).join("");
      return element("path", { d, class: dashed ? "line dashed" : "line", style: `stroke:var(--c${colour})` });
    });
  }

  // The crosshair at a value of x, and what each line has there.
  point(x) {
    this.cursor = x;
    this.hover.replaceChildren();
    const [x0, x1] = this.ends;
    if (x < x0 || x > x1) return void (this.tip.hidden = true);
    const found = this.drawn.map((line) => ({ line, at: nearestPoint(line.points, x) })).filter(({ at }) => at);
    if (!found.length) return void (this.tip.hidden = true);
    const pixel = this.x.at(found[0].at[0]);
    this.hover.append(element("path", { d: `M${pixel} ${BOX.top}V${BOX.bottom}`, class: "cross" }));
    for (const { line, at } of found) {
      const dot = { cx: this.x.at(at[0]), cy: this.y.at(at[1]), r: 3, style: `fill:var(--c${line.colour})` };
      if (Number.isFinite(dot.cy)) this.hover.append(element("circle", dot));
    }
    this.tell(found, pixel);
  }

  tell(found, pixel) {
    const several = Object.keys(this.group.runs).length > 1;
    const where = `${this.group.axis === "hours" ? "hour" : this.group.axis === "images" ? "image" : "step"} ${readable(found[0].at[0])}`;
    const rows = found.map(({ line, at }) => {
      const name = [several ? line.run || this.group.runOf(line).name : "", line.label || (line.dashed ? "untrained" : "")].filter(Boolean).join(", ");
      return { colour: line.colour, name: name || this.title, value: short(at[1], 1e6) };
    });
    const head = document.createElement("b");
    head.textContent = where;
    this.tip.replaceChildren(head, ...rows.map(({ colour, name, value }) => {
      const row = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.style.background = `var(--c${colour})`;
      row.append(swatch, `${name} `, Object.assign(document.createElement("b"), { textContent: value }));
      return row;
    }));
    this.tip.hidden = false;
    const share = pixel / BOX.width;
    this.tip.style.left = share < 0.5 ? `${100 * share + 3}%` : "auto";
    this.tip.style.right = share < 0.5 ? "auto" : `${100 * (1 - share) + 3}%`;
    this.describe(`${where}: ${rows.map(({ name, value }) => `${name} ${value}`).join("; ")}`);
  }

  describe(words = "") {
    const [x0, x1] = this.ends;
    const now = this.cursor === null ? x1 : Math.min(Math.max(this.cursor, x0), x1);
    const told = { "aria-label": `${this.title}, over ${this.group.axis}`, "aria-valuemin": x0, "aria-valuemax": x1, "aria-valuenow": now };
    for (const [key, value] of Object.entries(told)) this.svg.setAttribute(key, value);
    this.svg.setAttribute("aria-valuetext", words || `${this.group.axis} ${readable(x0)} to ${readable(x1)}`);
  }

  valueAt(event) {
    const box = this.svg.getBoundingClientRect();
    return this.x.value(Math.min(Math.max(((event.clientX - box.left) / box.width) * BOX.width, BOX.left + 4), BOX.right - 4));
  }

  leave() {
    this.cursor = null;
    this.hover.replaceChildren();
    this.tip.hidden = true;
    this.describe();
  }

  listen() {
    let from = null;
    const over = (event) => {
      const x = this.valueAt(event);
      this.group.charts.forEach((chart) => chart !== this && chart.leave());
      this.point(x);
      if (from === null) return;
      const [a, b] = [this.x.at(from), this.x.at(x)].sort((one, two) => one - two);
      this.hover.append(element("rect", { x: a, y: BOX.top, width: b - a, height: BOX.bottom - BOX.top, class: "chosen" }));
    };
    this.svg.addEventListener("pointermove", over);
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      this.svg.setPointerCapture(event.pointerId);
      from = this.valueAt(event);
      over(event);
    });
    this.svg.addEventListener("pointerup", (event) => {
      const ends = from === null ? [0, 0] : [from, this.valueAt(event)].sort((one, two) => one - two);
      from = null;
      if (this.x.at(ends[1]) - this.x.at(ends[0]) > 6) this.group.zoom(ends);
    });
    this.svg.addEventListener("pointercancel", () => (from = null));
    this.svg.addEventListener("pointerleave", () => from === null && this.leave());
    this.svg.addEventListener("dblclick", () => this.group.zoom(null));
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const [x0, x1] = this.ends.map((end) => this.x.at(end));
    const here = this.cursor === null ? x1 : this.x.at(Math.min(Math.max(this.cursor, this.ends[0]), this.ends[1]));
    const to = { ArrowLeft: here - 4, ArrowRight: here + 4, PageDown: here - 40, PageUp: here + 40, Home: x0, End: x1 }[event.key];
    const around = { "+": 0.25, "=": 0.25, "-": 1 }[event.key];
    if (to !== undefined) this.point(this.x.value(Math.min(Math.max(to, x0), x1)));
    else if (around) this.group.zoom([here - (x1 - x0) * around, here + (x1 - x0) * around].map(this.x.value), this.cursor);
    else if (event.key === "0" || event.key === "Escape") this.group.zoom(null);
    else return;
    event.preventDefault();
  }
}

// The charts of a section, which share their axis and the range that is in view.
class Group {
  constructor(section, runs) {
    this.section = section;
    this.runs = runs;
    this.base = section.querySelector(".charts").dataset.base;
    Object.assign(this, { axis: this.base, logX: false, logY: false, range: null });
    this.charts = [...section.querySelectorAll(".chart")].map((article) => new Chart(article, this));
    this.controls();
    this.draw();
  }

  take(section) { // the same section of a newer page
    this.runs = readData("axes");
    const articles = [...section.querySelectorAll(".chart")];
    this.charts.forEach((each, i) => each.renew(articles[i]));
    this.draw();
    return true;
  }

  runOf(line) {
    return this.runs[line.run] || Object.values(this.runs).find(({ colour }) => colour === line.colour);
  }

  controls() {
    const box = this.section.querySelector(".controls");
    for (const radio of box.querySelectorAll("input[type=radio]")) {
      radio.disabled = this.charts.some(({ lines }) => lines.some((line) => !converter(radio.value, this.base, this.runOf(line))));
      radio.addEventListener("change", () => Object.assign(this, { axis: radio.value, range: null }) && this.draw());
    }
    for (const name of ["logX", "logY"]) {
      const tick = box.querySelector(`input[name=${name}]`);
      tick.addEventListener("change", () => Object.assign(this, { [name]: tick.checked, range: null }) && this.draw());
    }
    this.reset = box.querySelector("button");
    this.reset.addEventListener("click", () => this.zoom(null));
  }

  zoom(range, cursor = null) {
    const whole = this.charts.map(({ lines }) => lines).flat().length > 0;
    this.range = whole && range && range[1] > range[0] ? range : null;
    this.charts.forEach((chart) => (chart.cursor = chart.cursor === null ? null : cursor));
    this.draw();
  }

  draw() {
    this.reset.disabled = this.range === null;
    this.charts.forEach((chart) => chart.draw());
  }
}

const groups = [...document.querySelectorAll("section")].filter((section) => section.querySelector(".charts .plot")).map(
  (section) => new Group(section, readData("axes")));
