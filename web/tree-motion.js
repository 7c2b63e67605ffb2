// What moves: queries down the branches, and what is said straight back to the root, as lights on a canvas over the drawing. Whoever
// wants no motion sees none.

/** @typedef {{points: number[][], lengths: number[], from: number, takes: number, kind: 'query'|'token'|'answer'|'lost', id: string}} Light */

/** More are a blur. */
const LIGHTS_MAX = 260;
const still = matchMedia('(prefers-reduced-motion: reduce)');

export class Motion {
  /** @type {Light[]} */
  lights = [];
  view = { k: 1, x: 0, y: 0 };
  /** @type {Record<string, string>} */
  colours = {};
  frame = 0;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.paint = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
  }

  /** Takes its size and its colours from the page. */
  fit() {
    const { canvas } = this;
    const sharp = Math.min(devicePixelRatio, 2);
    canvas.width = Math.round(canvas.clientWidth * sharp);
    canvas.height = Math.round(canvas.clientHeight * sharp);
    this.sharp = sharp;
    for (const kind of ['query', 'token', 'answer', 'lost']) {
      canvas.style.color = `var(--light-${kind})`;
      this.colours[kind] = getComputedStyle(canvas).color;
    }
  }

  /** Down a way. @param {number[][]} points @param {string} id @returns {number} when it has arrived, in milliseconds from now */
  descend(points, id) {
    const takes = Math.min(1500, 350 + points.length * 22);
    this.#add(points, 'query', takes, id, 0);
    return takes;
  }

  /** Straight to the root. @param {{x: number, y: number}} from @param {{x: number, y: number}} to @param {'token'|'answer'} kind @param {string} id @param {number} after */
  drop(from, to, kind, id, after) {
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    // A little beside the straight line, so that it is no branch.
    const bow = (dx >= 0 ? -1 : 1) * Math.min(60, Math.hypot(dx, dy) * 0.12);
    const long = Math.hypot(dx, dy) || 1;
    const middle = [from.x + dx / 2 - (dy / long) * bow, from.y + dy / 2 + (dx / long) * bow];
    const points = Array.from({ length: 17 }, (_, step) => {
      const s = step / 16;
      const u = 1 - s;
      return [u * u * from.x + 2 * u * s * middle[0] + s * s * to.x, u * u * from.y + 2 * u * s * middle[1] + s * s * to.y];
    });
    this.#add(points, kind, kind === 'answer' ? 950 : 750, id, after);
  }

  /** @param {{x: number, y: number}} at */
  vanish({ x, y }) {
    this.#add([[x, y], [x, y]], 'lost', 900, '', 0);
  }

  /** The query whose light is there. @param {number} x @param {number} y in the drawing's measure @param {number} near */
  at(x, y, near) {
    const now = performance.now();
    for (const light of this.lights) {
      const done = (now - light.from) / light.takes;
      if (light.id === '' || done < 0 || done > 1) continue;
      const [at, other] = along(light, ease(done));
      if (Math.hypot(at - x, other - y) < near) return light.id;
    }
    return null;
  }

  /** @param {number[][]} points @param {Light['kind']} kind @param {number} takes @param {string} id @param {number} after */
  #add(points, kind, takes, id, after) {
    if (still.matches || document.hidden || this.lights.length >= LIGHTS_MAX || points.length < 2) return;
    let sum = 0;
    const lengths = points.map(([x, y], at) => (sum += at === 0 ? 0 : Math.hypot(x - points[at - 1][0], y - points[at - 1][1])));
    this.lights.push({ points, lengths, from: performance.now() + after, takes, kind, id });
    if (this.frame === 0) this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const { paint, canvas, view, sharp = 1 } = this;
    const now = performance.now();
    paint.setTransform(1, 0, 0, 1, 0, 0);
    paint.clearRect(0, 0, canvas.width, canvas.height);
    paint.setTransform(view.k * sharp, 0, 0, view.k * sharp, view.x * sharp, view.y * sharp);
    paint.lineCap = 'round';
    // As large on the screen however far away the tree is.
    const size = Math.max(0.7, 0.66 / view.k);
    this.lights = this.lights.filter((light) => now < light.from + light.takes);
    for (const light of this.lights) {
      const done = (now - light.from) / light.takes;
      if (done < 0) continue;
      paint.strokeStyle = paint.fillStyle = this.colours[light.kind];
      if (light.kind === 'lost') ring(paint, light.points[0], done, size);
      else glow(paint, light, done, size * (light.kind === 'token' ? 0.6 : 1.15));
    }
    paint.globalAlpha = 1;
    this.frame = this.lights.length > 0 ? requestAnimationFrame(() => this.draw()) : 0;
  }
}

/** @param {number} s */
const ease = (s) => (s < 0.5 ? 2 * s * s : 1 - (2 - 2 * s) ** 2 / 2);

/** @param {CanvasRenderingContext2D} paint @param {number[]} at @param {number} done @param {number} size */
function ring(paint, [x, y], done, size) {
  paint.globalAlpha = 1 - done;
  paint.lineWidth = 3 * size;
  paint.beginPath();
  paint.arc(x, y, (12 + 60 * done) * size, 0, 7);
  paint.stroke();
}

/** A light with the thread that it leaves. @param {CanvasRenderingContext2D} paint @param {Light} light @param {number} done @param {number} size */
function glow(paint, light, done, size) {
  const here = ease(done);
  const fade = Math.min(1, (1 - done) * 5, done * 8);
  paint.lineWidth = 1.1 * size;
  paint.globalAlpha = 0.16 * fade;
  trace(paint, light, 0, here);
  paint.lineWidth = 2.6 * size;
  paint.globalAlpha = 0.55 * fade;
  trace(paint, light, Math.max(0, here - 0.09), here);
  const [x, y] = along(light, here);
  paint.globalAlpha = 0.16 * fade;
  paint.beginPath();
  paint.arc(x, y, 8 * size, 0, 7);
  paint.fill();
  paint.globalAlpha = fade;
  paint.beginPath();
  paint.arc(x, y, 3.6 * size, 0, 7);
  paint.fill();
}

/** @param {CanvasRenderingContext2D} paint @param {Light} light @param {number} from @param {number} to */
function trace(paint, light, from, to) {
  const { points, lengths } = light;
  const whole = lengths[lengths.length - 1];
  paint.beginPath();
  const [x, y] = along(light, from);
  paint.moveTo(x, y);
  points.forEach((point, at) => {
    if (lengths[at] > from * whole && lengths[at] < to * whole) paint.lineTo(point[0], point[1]);
  });
  const [endX, endY] = along(light, to);
  paint.lineTo(endX, endY);
  paint.stroke();
}

/** @param {Light} light @param {number} s */
function along({ points, lengths }, s) {
  const wanted = s * lengths[lengths.length - 1];
  const next = Math.max(1, lengths.findIndex((length) => length >= wanted));
  const [a, b] = [points[next - 1], points[next]];
  const part = (wanted - lengths[next - 1]) / (lengths[next] - lengths[next - 1] || 1);
  return [a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part];
}
