// How much of the drawing is seen: moved and zoomed by pointers, wheel and keys.

const NEAR = 3;
const NAMES = 1.7;
const EDGE = 36;
/** For the legend. */
const BELOW = 76;

export class View {
  k = 1;
  x = 0;
  y = 0;
  /** Somebody chose what is seen, so it stays. */
  chosen = false;
  /** @type {Map<number, PointerEvent>} */
  #down = new Map();
  /** It was a movement, no click. */
  moved = false;

  /** @param {SVGSVGElement} picture @param {Element[]} worlds what is seen @param {() => void} changed */
  constructor(picture, worlds, changed) {
    this.picture = picture;
    this.worlds = worlds;
    this.changed = changed;
    picture.addEventListener('wheel', (event) => {
      event.preventDefault();
      const by = event.deltaY * (event.deltaMode === 1 ? 18 : 1);
      this.zoom(Math.exp(-Math.max(-240, Math.min(240, by)) * 0.0022), event.offsetX, event.offsetY);
    }, { passive: false });
    picture.addEventListener('pointerdown', (event) => {
      this.#down.set(event.pointerId, event);
      this.moved = false;
    });
    picture.addEventListener('pointermove', (event) => this.#move(event));
    for (const end of ['pointerup', 'pointercancel', 'pointerleave']) picture.addEventListener(end, (event) => this.#down.delete(/** @type {PointerEvent} */ (event).pointerId));
  }

  /** What there is for the tree: less the edges, and what stands below. */
  get space() {
    const { clientWidth: w, clientHeight: h } = this.picture;
    return { w: w - 2 * Math.min(EDGE, w * 0.04), h: Math.max(60, h - EDGE - BELOW) };
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const before = this.#down.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (!this.moved && Math.hypot(dx, dy) < 4) return;
    if (!this.moved) this.picture.setPointerCapture(event.pointerId);
    this.moved = true;
    const other = [...this.#down.values()].find(({ pointerId }) => pointerId !== event.pointerId);
    this.#down.set(event.pointerId, event);
    if (!other) return this.move(dx, dy);
    const apart = (/** @type {PointerEvent} */ one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const box = this.picture.getBoundingClientRect();
    this.move(dx / 2, dy / 2);
    this.zoom(apart(event) / Math.max(1, apart(before)), (event.clientX + other.clientX) / 2 - box.x, (event.clientY + other.clientY) / 2 - box.y);
  }

  /** @param {number} dx @param {number} dy */
  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.chosen = true;
    this.#show();
  }

  /** @param {number} by @param {number} [x] @param {number} [y] what stays where it is */
  zoom(by, x = this.picture.clientWidth / 2, y = this.picture.clientHeight / 2) {
    const k = Math.max(0.02, Math.min(NEAR, this.k * by));
    this.x = x - ((x - this.x) * k) / this.k;
    this.y = y - ((y - this.y) * k) / this.k;
    this.k = k;
    this.chosen = true;
    this.#show();
  }

  /** Shows all. @param {{left: number, top: number, right: number, bottom: number}} bounds */
  fit({ left, top, right, bottom }) {
    const { w, h } = this.space;
    const [wide, high] = [right - left || 1, bottom - top || 1];
    this.k = Math.min(1.25, w / wide, h / high);
    this.x = this.picture.clientWidth / 2 - ((left + right) / 2) * this.k;
    this.y = EDGE + Math.max(0, (h - high * this.k) * 0.4) - top * this.k;
    this.chosen = false;
    this.#show();
  }

  /** Brings a point into the middle. @param {{x: number, y: number}} at @param {number} [k] at least so near */
  centre({ x, y }, k = 0) {
    this.k = Math.max(this.k, k);
    this.x = this.picture.clientWidth / 2 - x * this.k;
    this.y = this.picture.clientHeight / 2 - y * this.k;
    this.chosen = true;
    this.#show();
  }

  /** Whether a point is seen. @param {{x: number, y: number}} at */
  sees({ x, y }) {
    const [sx, sy] = [x * this.k + this.x, y * this.k + this.y];
    return sx > 20 && sy > 20 && sx < this.picture.clientWidth - 20 && sy < this.picture.clientHeight - 20;
  }

  #show() {
    const seen = `translate(${this.x.toFixed(2)} ${this.y.toFixed(2)}) scale(${this.k.toFixed(4)})`;
    // Leaves have names where there is space for them.
    this.picture.classList.toggle('near', this.k > NAMES);
    for (const world of this.worlds) world.setAttribute('transform', seen);
    this.changed();
  }
}
