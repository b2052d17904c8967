// Patches that are alike: the tokens are the page's own, and each click compares one with all.
{
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  class Alike {
    constructor(host) {
      const { grid, width, tokens } = readData(`alike-${host.dataset.run}`);
      const values = new Int8Array(bytes(tokens).buffer);
      [this.rows, this.columns] = grid;
      this.patches = this.rows * this.columns;
      this.tokens = Array.from({ length: values.length / width }, (_, i) => {
        const own = Float32Array.from(values.subarray(i * width, (i + 1) * width));
        const size = Math.hypot(...own) || 1;
        return own.map((x) => x / size);
      });
      this.names = [...host.querySelectorAll(".tile")].map((tile) => tile.getAttribute("aria-label"));
      this.told = document.querySelector(`[data-told="${host.dataset.run}"]`);
      this.veils = [...host.querySelectorAll(".stage")].map((stage, image) => this.veil(stage, image));
      this.choose(0, Math.floor(this.rows / 2) * this.columns + Math.floor(this.columns / 2));
    }

    veil(stage, image) {
      const canvas = Object.assign(document.createElement("canvas"), { width: this.columns, height: this.rows, tabIndex: 0 });
      const mark = Object.assign(document.createElement("b"), { hidden: true });
      const set = { role: "slider", "aria-label": `patch of ${this.names[image]}`, "aria-valuemin": 1, "aria-valuemax": this.patches, "aria-valuenow": 1 };
      for (const [key, value] of Object.entries(set)) canvas.setAttribute(key, value);
      stage.append(canvas, mark);
      const at = (event) => {
        const box = canvas.getBoundingClientRect();
        const place = (x, size, n) => Math.min(n - 1, Math.max(0, Math.floor((x / size) * n)));
        return place(event.clientY - box.top, box.height, this.rows) * this.columns + place(event.clientX - box.left, box.width, this.columns);
      };
      canvas.addEventListener("pointerdown", (event) => this.choose(image, at(event)));
      canvas.addEventListener("pointermove", (event) => event.buttons & 1 && this.choose(image, at(event)));
      canvas.addEventListener("focus", () => image !== this.image && canvas.matches(":focus-visible") && this.choose(image, this.patch));
      canvas.addEventListener("keydown", (event) => this.key(event, image));
      return { canvas, mark };
    }

    key(event, image) {
      const [row, column] = [Math.floor(this.patch / this.columns), this.patch % this.columns];
      const to = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1] }[event.key];
      if (!to || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const [r, c] = [Math.min(this.rows - 1, Math.max(0, to[0])), Math.min(this.columns - 1, Math.max(0, to[1]))];
      this.choose(image, r * this.columns + c);
    }

    choose(image, patch) {
      Object.assign(this, { image, patch });
      const asked = this.tokens[image * this.patches + patch];
      const cosines = this.tokens.map((token) => token.reduce((sum, x, i) => sum + x * asked[i], 0));
      this.veils.forEach(({ canvas, mark }, i) => {
        const pen = canvas.getContext("2d", { willReadFrequently: true });
        const picture = pen.createImageData(this.columns, this.rows);
        for (let p = 0; p < this.patches; p++) {
          const alike = Math.max(0, cosines[i * this.patches + p]);
          picture.data.set([12, 12, 16, Math.round(210 * (1 - alike ** 1.5))], 4 * p);
        }
        pen.putImageData(picture, 0, 0);
        mark.hidden = i !== image;
      });
      const { canvas, mark } = this.veils[image];
      const [row, column] = [Math.floor(patch / this.columns), patch % this.columns];
      const box = { left: column / this.columns, top: row / this.rows, width: 1 / this.columns, height: 1 / this.rows };
      for (const [side, share] of Object.entries(box)) mark.style[side] = `${100 * share}%`;
      this.tell(cosines, canvas, row, column);
    }

    tell(cosines, canvas, row, column) {
      let best = -1;
      cosines.forEach((cosine, i) => {
        if (Math.floor(i / this.patches) !== this.image && (best < 0 || cosine > cosines[best])) best = i;
      });
      const nearest = best < 0 ? "" : `; most alike in another image: ${this.names[Math.floor(best / this.patches)]}, ${cosines[best].toFixed(2)}`;
      const words = `Row ${row + 1}, column ${column + 1} of ${this.names[this.image]}${nearest}.`;
      this.told.textContent = words;
      canvas.setAttribute("aria-valuenow", this.patch + 1);
      canvas.setAttribute("aria-valuetext", words);
    }
  }

  for (const host of document.querySelectorAll(".alike")) new Alike(host);
}
