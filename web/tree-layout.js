// Where nodes are drawn: a tidy tree in linear time, for boxes of any size (van der Ploeg, "Drawing non-layered tidy trees in linear
// time", 2014). Knows no page.

/**
 * A box, and those below it. `layout` sets `x` (its left) and `y` (its top).
 * @typedef {{w: number, h: number, children: Box[], x: number, y: number}} Box
 */

/** A box and what the walk knows of it. */
class Walk {
  /** @param {Box} box @param {number} y @param {{x: number, y: number}} gap */
  constructor(box, y, gap) {
    this.box = box;
    this.w = box.w + gap.x;
    this.bottom = y + box.h + gap.y;
    box.y = y;
    /** @type {Walk[]} */
    this.children = box.children.map((child) => new Walk(child, this.bottom, gap));
    this.prelim = 0;
    this.mod = 0;
    this.shift = 0;
    this.change = 0;
    /** Threads to the next of a contour. @type {Walk|null} */
    this.left = null;
    /** @type {Walk|null} */
    this.right = null;
    /** The extreme nodes, and the sums of `mod` on the way to them. @type {Walk} */
    this.leftmost = this;
    /** @type {Walk} */
    this.rightmost = this;
    this.leftSum = 0;
    this.rightSum = 0;
  }
}

/** Lowest points of the subtrees to the left, the last first. @typedef {{y: number, index: number, next: Lows}|null} Lows */

/**
 * Gives each box of a tree its place: none overlaps another, and each stands above the middle of those below it.
 * @param {Box} root @param {{x: number, y: number}} gap
 */
export function layout(root, gap) {
  const walk = new Walk(root, 0, gap);
  first(walk);
  second(walk, 0);
}

/** @param {Walk} at */
function first(at) {
  const { children } = at;
  if (children.length === 0) return;
  first(children[0]);
  let lows = lower(children[0].leftmost.bottom, 0, null);
  for (let index = 1; index < children.length; index += 1) {
    first(children[index]);
    const low = children[index].rightmost.bottom;
    separate(at, index, lows);
    lows = lower(low, index, lows);
  }
  const [one, last] = [children[0], children[children.length - 1]];
  at.prelim = (one.prelim + one.mod + last.mod + last.prelim + last.w - at.w) / 2;
  [at.leftmost, at.leftSum] = [one.leftmost, one.leftSum];
  [at.rightmost, at.rightSum] = [last.rightmost, last.rightSum];
}

/** @param {Walk} at @param {number} index @param {Lows} lows */
function separate(at, index, lows) {
  /** @type {Walk|null} */
  let right = at.children[index - 1];
  /** @type {Walk|null} */
  let left = at.children[index];
  let [rightSum, leftSum] = [right.mod, left.mod];
  while (right && left) {
    if (lows && right.bottom > lows.y) lows = lows.next;
    const overlap = rightSum + right.prelim + right.w - (leftSum + left.prelim);
    if (overlap > 0) {
      leftSum += overlap;
      move(at, index, lows?.index ?? 0, overlap);
    }
    const [rightBottom, leftBottom] = [right.bottom, left.bottom];
    if (rightBottom <= leftBottom) {
      right = right.children.at(-1) ?? right.right;
      if (right) rightSum += right.mod;
    }
    if (rightBottom >= leftBottom) {
      left = left.children[0] ?? left.left;
      if (left) leftSum += left.mod;
    }
  }
  if (!right && left) threadLeft(at, index, left, leftSum);
  else if (right && !left) threadRight(at, index, right, rightSum);
}

/** @param {Walk} at @param {number} index @param {number} from @param {number} by */
function move(at, index, from, by) {
  const child = at.children[index];
  child.mod += by;
  child.leftSum += by;
  child.rightSum += by;
  // Those between share in the movement, so that they stand evenly.
  if (from !== index - 1) {
    const parts = index - from;
    at.children[from + 1].shift += by / parts;
    child.shift -= by / parts;
    child.change -= by - by / parts;
  }
}

/** @param {Walk} at @param {number} index @param {Walk} next @param {number} sum */
function threadLeft(at, index, next, sum) {
  const [one, child] = [at.children[0], at.children[index]];
  const last = one.leftmost;
  last.left = next;
  const by = sum - next.mod - one.leftSum;
  last.mod += by;
  last.prelim -= by;
  [one.leftmost, one.leftSum] = [child.leftmost, child.leftSum];
}

/** @param {Walk} at @param {number} index @param {Walk} next @param {number} sum */
function threadRight(at, index, next, sum) {
  const [child, before] = [at.children[index], at.children[index - 1]];
  const last = child.rightmost;
  last.right = next;
  const by = sum - next.mod - child.rightSum;
  last.mod += by;
  last.prelim -= by;
  [child.rightmost, child.rightSum] = [before.rightmost, before.rightSum];
}

/** @param {number} y @param {number} index @param {Lows} lows @returns {Lows} */
function lower(y, index, lows) {
  while (lows && y >= lows.y) lows = lows.next;
  return { y, index, next: lows };
}

/** @param {Walk} at @param {number} sum */
function second(at, sum) {
  sum += at.mod;
  at.box.x = at.prelim + sum;
  let [shift, moved] = [0, 0];
  for (const child of at.children) {
    shift += child.shift;
    moved += shift + child.change;
    child.mod += moved;
    second(child, sum);
  }
}
