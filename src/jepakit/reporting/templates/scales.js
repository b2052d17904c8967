// Scales, ticks and numbers of charts.

const SVG = "http://www.w3.org/2000/svg";
const PIECES = 200; // a line of more points in view is averaged into so many pieces

const readable = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));

const nearestPoint = (points, x) => {
  let best = null;
  for (const at of points) if (at[1] !== null && (best === null || Math.abs(at[0] - x) < Math.abs(best[0] - x))) best = at;
  return best;
};

const element = (name, attributes = {}, text = null) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
};

// As figures.short: a number in few characters.
const short = (value, thousands = 1e4) => {
  const size = Math.abs(value);
  const digits = (x) => String(Number(x.toPrecision(4)));
  const text = size >= 1e6 ? digits(value / 1e6) + "M" : size >= thousands ? digits(value / 1e3) + "k" : digits(value);
  return text.replace("-", "−");
};

// A scale from values to pixels, linear or logarithmic, with its inverse and its ticks.
const scaleOf = (low, high, from, to, log) => {
  const up = log ? Math.log10 : (x) => x;
  const down = log ? (x) => 10 ** x : (x) => x;
  const [a, b] = [up(low), up(high)];
  const span = b - a || 1;
  const at = (value) => from + ((up(value) - a) / span) * (to - from);
  const value = (pixel) => down(a + ((pixel - from) / (to - from)) * span);
  return { at, value, ticks: (count) => (log ? logTicks(low, high) : linearTicks(low, high, count)) };
};

const linearTicks = (low, high, count) => {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
};

const logTicks = (low, high) => {
  const whole = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) whole.push(power);
  const every = Math.ceil(whole.length / 5);
  const factors = whole.length > 3 ? [1] : whole.length > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const inside = (value) => value >= low * 0.999 && value <= high * 1.001;
  const ticks = whole.filter((power) => power % every === 0).flatMap((power) => factors.map((f) => f * 10 ** power)).filter(inside);
  return ticks.length > 1 ? ticks : linearTicks(low, high, 3).filter((value) => value > 0);
};

// What a run's steps are in images and hours; a value of the base axis of a group becomes one of the axis that is shown.
const converter = (axis, base, known) => {
  if (axis === base) return (x) => x;
  const { batch, steps, hours } = known || {};
  const stepOf = base === "images" ? (x) => x / batch : (x) => x;
  if (base === "images" && !batch) return null;
  if (axis === "images") return batch ? (x) => x * batch : null;
  if (axis === "steps") return stepOf;
  if (!hours || !hours.length) return null;
  return (x) => {
    const step = stepOf(x);
    let high = steps.findIndex((each) => each >= step);
    if (high < 0) return hours[hours.length - 1] * (step / steps[steps.length - 1]);
    const [s0, h0] = high ? [steps[high - 1], hours[high - 1]] : [0, 0];
    return h0 + ((hours[high] - h0) * (step - s0)) / (steps[high] - s0 || 1);
  };
};

const thinnedLine = (points) => {
  if (points.length <= PIECES) return points;
  return Array.from({ length: PIECES }, (_, piece) => {
    const part = points.slice(Math.floor((piece * points.length) / PIECES), Math.floor(((piece + 1) * points.length) / PIECES));
    const sure = part.filter(([, y]) => y !== null);
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    return [mean(part.map(([x]) => x)), sure.length ? mean(sure.map(([, y]) => y)) : null];
  });
};

const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
