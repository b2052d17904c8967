// The map of embeddings: thumbnails on a canvas, to move, zoom, search, and ask for neighbours.
{
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const HUES = 8; // colours of the page; further kinds are gray
  const make = (name, props = {}, ...children) => {
    const made = Object.assign(document.createElement(name), props);
    made.append(...children);
    return made;
  };

  class EmbeddingMap {
    constructor(host) {
      Object.assign(this, readData(`map-${host.dataset.run}`));
      this.host = host;
      this.count = this.atlas.count;
      for (const [name, text] of Object.entries(this.points)) this.points[name] = this.fitted(new Float32Array(bytes(text)), name === "tsne");
      this.nearest = new Uint16Array(bytes(this.near.nearest));
      this.cosines = new Float32Array(bytes(this.near.cosines));
      const find = (selector) => host.querySelector(selector);
      [this.ground, this.aside, this.legend, this.search, this.select] = [".ground", "aside", ".legend", "[type=search]", "select"].map(find);
      this.canvas = make("canvas", { tabIndex: 0 });
      this.canvas.setAttribute("role", "application");
      this.canvas.setAttribute("aria-label", `map of ${this.count} images; arrows move, plus and minus zoom, 0 shows all, Enter chooses the image nearest to the middle`);
      this.tip = make("div", { className: "tip", hidden: true });
      this.ground.append(this.canvas, this.tip);
      this.kind = Object.keys(this.points).includes("tsne") ? "tsne" : "pca";
      [this.chosen, this.found, this.hover] = [-1, null, -1];
      this.view = { x: 0.5, y: 0.5, zoom: 1 };
      this.colour();
      this.sheet = make("img", { alt: "" });
      this.sheet.addEventListener("load", () => this.later());
      this.sheet.src = this.atlas.src;
      this.listen();
      this.tell();
      new ResizeObserver(() => this.later()).observe(this.canvas);
    }

    fitted(flat, both) { // into the unit square, the longer side from 0 to 1, or both, where distances mean nothing
      const [xs, ys] = [0, 1].map((axis) => flat.filter((_, i) => i % 2 === axis));
      const ends = (v) => v.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
      const [[x0, x1], [y0, y1]] = [ends(xs), ends(ys)];
      const size = Math.max(x1 - x0, y1 - y0) || 1;
      const [w, h] = both ? [x1 - x0 || 1, y1 - y0 || 1] : [size, size];
      return Array.from(xs, (x, i) => [0.5 + (x - (x0 + x1) / 2) / w, 0.5 - (ys[i] - (y0 + y1) / 2) / h]);
    }

    colour() {
      this.of = this.colours[this.select.value];
      const counts = {};
      for (const name of this.of) if (name) counts[name] = (counts[name] || 0) + 1;
      const names = Object.keys(counts).sort((a, b) => counts[b] - counts[a] || a.localeCompare(b, "en", { numeric: true }));
      const kept = names.length > HUES ? names.slice(0, HUES - 1) : names;
      this.hue = new Map(kept.map((name, i) => [name, i]));
      this.legend.replaceChildren(...kept.map((name, i) => {
        const button = make("button", { type: "button" }, make("i", { className: "swatch" }), `${name} `, make("small", { textContent: counts[name] }));
        button.firstChild.style.background = `var(--c${i})`;
        button.addEventListener("click", () => this.look(this.search.value === name ? "" : name));
        return button;
      }));
      if (names.length > kept.length) this.legend.append(make("span", { textContent: `and ${names.length - kept.length} more, gray` }));
    }

    look(words) {
      this.search.value = words;
      const wanted = words.trim().toLowerCase();
      const said = (i) => [this.titles[i], ...Object.values(this.colours).map((of) => of[i])].join(" ").toLowerCase();
      this.found = wanted ? new Set(Array.from({ length: this.count }, (_, i) => i).filter((i) => said(i).includes(wanted))) : null;
      this.tell();
      this.later();
    }

    later() {
      if (!this.due) this.due = requestAnimationFrame(() => this.draw());
    }

    place() { // from the unit square to pixels of the page
      const { width, height } = this.canvas.getBoundingClientRect();
      const least = Math.min(width, height);
      const scale = (this.kind === "tsne" ? [width, height] : [least, least]).map((size) => (size - 40) * this.view.zoom);
      const at = ([x, y]) => [(x - this.view.x) * scale[0] + width / 2, (y - this.view.y) * scale[1] + height / 2];
      const side = Math.min(64, Math.min(26, Math.max(10, 480 / Math.sqrt(this.count))) * this.view.zoom ** 0.7);
      return { width, height, scale, at, side };
    }

    draw() {
      this.due = 0;
      const { width, height, at, side } = this.place();
      const dense = window.devicePixelRatio || 1;
      const [w, h] = [Math.round(width * dense), Math.round(height * dense)];
      if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
      const pen = this.canvas.getContext("2d", { willReadFrequently: true });
      pen.setTransform(dense, 0, 0, dense, 0, 0);
      pen.clearRect(0, 0, width, height);
      const style = getComputedStyle(this.canvas);
      const hues = Array.from({ length: HUES }, (_, i) => style.getPropertyValue(`--c${i}`));
      const [quiet, ink] = ["--quiet", "--ink"].map((name) => style.getPropertyValue(name));
      const near = this.chosen < 0 ? [] : this.neighbours(this.chosen).map(([i]) => i);
      const bright = (i) => (this.found ? this.found.has(i) : true) || i === this.chosen || near.includes(i);
      const order = Array.from({ length: this.count }, (_, i) => i).sort((a, b) => bright(a) - bright(b));
      const [th, tw] = this.atlas.tile;
      const size = [side * Math.min(1, tw / th), side * Math.min(1, th / tw)];
      const points = this.points[this.kind].map(at);
      if (near.length) {
        pen.strokeStyle = ink;
        pen.globalAlpha = 0.6;
        for (const i of near) pen.stroke(new Path2D(`M${points[this.chosen]}L${points[i]}`));
      }
      for (const i of [...order, ...near, this.chosen].filter((i) => i >= 0)) {
        const [x, y] = points[i];
        if (x < -side || y < -side || x > width + side || y > height + side) continue;
        const marked = i === this.chosen || near.includes(i) || i === this.hover;
        const [dw, dh] = size.map((each) => each * (marked ? 1.5 : 1));
        pen.globalAlpha = bright(i) ? 1 : 0.1;
        const hue = this.hue.get(this.of[i]);
        const edge = side < 14 ? 1.2 : 2;
        pen.fillStyle = i === this.chosen ? ink : hue === undefined ? quiet : hues[hue];
        pen.fillRect(x - dw / 2 - edge, y - dh / 2 - edge, dw + 2 * edge, dh + 2 * edge);
        const from = [(i % this.atlas.columns) * tw, Math.floor(i / this.atlas.columns) * th];
        pen.drawImage(this.sheet, ...from, tw, th, x - dw / 2, y - dh / 2, dw, dh);
      }
      pen.globalAlpha = 1;
    }

    neighbours(i) {
      const { k } = this.near;
      return Array.from({ length: k }, (_, j) => [this.nearest[i * k + j], this.cosines[i * k + j]]);
    }

    named(i) {
      const label = this.colours.labels ? this.colours.labels[i] : "";
      return [this.titles[i], label].filter(Boolean).join(", ") || `image ${i + 1}`;
    }

    thumb(i) {
      const { columns, rows } = this.atlas;
      const tile = make("i", { className: "tile" });
      tile.style.backgroundPosition = `${(100 * (i % columns)) / Math.max(1, columns - 1)}% ${(100 * Math.floor(i / columns)) / Math.max(1, rows - 1)}%`;
      return tile;
    }

    tell() {
      const { src, columns, rows, tile } = this.atlas;
      const set = { "--atlas": `url(${src})`, "--columns": columns, "--rows": rows, "--shape": `${tile[1]}/${tile[0]}` };
      for (const [key, value] of Object.entries(set)) this.aside.style.setProperty(key, value);
      if (this.found) {
        this.aside.dataset.found = this.found.size;
      } else {
        delete this.aside.dataset.found;
      }
      const count = this.found ? [make("p", { className: "note", textContent: `${this.found.size.toLocaleString("en")} found.` })] : [];
      if (this.chosen < 0) {
        this.aside.replaceChildren(...count, make("p", { className: "note", textContent: "Choose an image to see what is nearest to it." }));
        return;
      }
      const rowsOf = this.neighbours(this.chosen).map(([i, cosine]) => {
        const button = make("button", { type: "button" }, this.thumb(i), make("span", {}, this.named(i), make("small", { textContent: `cosine ${cosine.toFixed(2)}` })));
        button.addEventListener("click", () => this.choose(i, true));
        return button;
      });
      const own = make("div", { className: "own" }, this.thumb(this.chosen), make("b", { textContent: this.named(this.chosen) }));
      this.aside.replaceChildren(...count, own, make("p", { className: "note", textContent: "Nearest on the map’s images, by cosine:" }), ...rowsOf);
    }

    choose(i, go) {
      this.chosen = i;
      if (go && i >= 0) [this.view.x, this.view.y] = this.points[this.kind][i];
      this.tell();
      this.later();
    }

    hit(event, within = 0) {
      const box = this.canvas.getBoundingClientRect();
      const { at, side } = this.place();
      const [px, py] = [event.clientX - box.left, event.clientY - box.top];
      let [best, far] = [-1, Math.max(7, side * 0.7, within)];
      this.points[this.kind].forEach((point, i) => {
        if (this.found && !this.found.has(i)) return;
        const [x, y] = at(point);
        const distance = Math.hypot(x - px, y - py);
        if (distance < far) [best, far] = [i, distance];
      });
      return { best, px, py };
    }

    zoom(factor, px, py) {
      const { width, height, scale } = this.place();
      const to = Math.min(40, Math.max(0.6, this.view.zoom * factor));
      const [x, y] = [(px - width / 2) / scale[0], (py - height / 2) / scale[1]].map((off) => off * (1 - this.view.zoom / to));
      this.view = { x: this.view.x + x, y: this.view.y + y, zoom: to }; // what lies under the pointer stays there
      this.later();
    }

    whole() {
      this.view = { x: 0.5, y: 0.5, zoom: 1 };
      this.later();
    }

    listen() {
      const held = new Map();
      let moved = 0;
      this.canvas.addEventListener("pointerdown", (event) => {
        this.canvas.setPointerCapture(event.pointerId);
        held.set(event.pointerId, event);
        moved = 0;
      });
      this.canvas.addEventListener("pointermove", (event) => {
        const before = held.get(event.pointerId);
        if (!before) return this.point(event);
        const other = [...held.values()].find((each) => each.pointerId !== event.pointerId);
        if (other) {
          const apart = (each) => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY) || 1;
          const box = this.canvas.getBoundingClientRect();
          this.zoom(apart(event) / apart(before), (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
        } else {
          const { scale } = this.place();
          this.view.x -= (event.clientX - before.clientX) / scale[0];
          this.view.y -= (event.clientY - before.clientY) / scale[1];
          this.later();
        }
        moved += Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY);
        held.set(event.pointerId, event);
      });
      const lift = (event) => {
        if (held.delete(event.pointerId) && event.type === "pointerup" && moved < 5) this.choose(this.hit(event).best, false);
      };
      this.canvas.addEventListener("pointerup", lift);
      this.canvas.addEventListener("pointercancel", lift);
      for (const gone of ["pointerleave", "blur"]) this.canvas.addEventListener(gone, () => this.point(null));
      this.canvas.addEventListener("wheel", (event) => { // of the page, until the map is taken
        if (!event.ctrlKey && document.activeElement !== this.canvas) return;
        event.preventDefault();
        const box = this.canvas.getBoundingClientRect();
        this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
      }, { passive: false });
      this.canvas.addEventListener("keydown", (event) => this.key(event));
      for (const radio of this.host.querySelectorAll("[type=radio]")) radio.addEventListener("change", () => {
        this.kind = radio.value;
        this.later();
      });
      this.select.addEventListener("change", () => {
        this.colour();
        this.later();
      });
      this.search.addEventListener("input", () => this.look(this.search.value));
      this.search.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || !this.found || !this.found.size) return;
        event.preventDefault();
        const all = [...this.found];
        this.choose(all[(all.indexOf(this.chosen) + 1) % all.length], true);
      });
      this.host.querySelector(".controls button").addEventListener("click", () => this.whole());
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
    }

    point(event, within = 0) {
      const { best, px, py } = event ? this.hit(event, within) : { best: -1 };
      if (best !== this.hover) this.later();
      this.hover = best;
      this.tip.hidden = best < 0;
      if (best < 0) return;
      this.tip.textContent = [this.named(best), this.colours.groups ? this.colours.groups[best] : "", this.colours.clusters[best]].filter(Boolean).join(" · ");
      const left = px < this.canvas.clientWidth / 2;
      Object.assign(this.tip.style, { top: `${py + 14}px`, left: left ? `${px + 14}px` : "auto", right: left ? "auto" : `${this.canvas.clientWidth - px + 14}px` });
    }

    key(event) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const { width, height } = this.place();
      const step = 0.1 / this.view.zoom;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (moves[event.key]) {
        this.view.x += moves[event.key][0];
        this.view.y += moves[event.key][1];
        this.later();
      } else if (event.key === "+" || event.key === "=") this.zoom(1.4, width / 2, height / 2);
      else if (event.key === "-" || event.key === "−") this.zoom(1 / 1.4, width / 2, height / 2);
      else if (event.key === "0") this.whole();
      else if (event.key !== "Enter") return;
      event.preventDefault();
      const box = this.canvas.getBoundingClientRect();
      const middle = { clientX: box.left + width / 2, clientY: box.top + height / 2 };
      if (event.key === "Enter") this.choose(this.hit(middle, width).best, true);
      this.point(middle, width); // what is nearest to the middle is told, and Enter chooses it
    }
  }

  for (const host of document.querySelectorAll(".atlas-map")) new EmbeddingMap(host);
}
