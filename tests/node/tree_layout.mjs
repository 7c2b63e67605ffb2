// Random trees of random boxes: none overlaps another, parents stand above the middle of their children, and children in order; in time that
// grows with the number of nodes alone.

import assert from 'node:assert';
import { layout } from '../../web/tree-layout.js';

const GAP = { x: 7, y: 11 };
const SLIP = 1e-6;

/** Numbers that look random, the same ones for a seed. */
function random(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

function tree(count, shape, below) {
  const box = () => ({ w: 10 + below(90), h: 10 + below(60), children: [] });
  const all = [box()];
  while (all.length < count) {
    const parents = [() => below(all.length), () => Math.max(0, all.length - 1 - below(3)), () => Math.floor(below(all.length) / 4)];
    const made = box();
    all[parents[shape]()].children.push(made);
    all.push(made);
  }
  return all;
}

const overlap = (a, b) =>
  a.x + a.w + GAP.x > b.x + SLIP && b.x + b.w + GAP.x > a.x + SLIP && a.y + a.h > b.y + SLIP && b.y + b.h > a.y + SLIP;

for (let seed = 1; seed <= 400; seed += 1) {
  const below = random(seed);
  const all = tree(1 + below(120), seed % 3, below);
  layout(all[0], GAP);
  for (const [index, one] of all.entries()) {
    for (const other of all.slice(index + 1)) assert(!overlap(one, other), `seed ${seed}: two overlap`);
    if (one.children.length === 0) continue;
    const [first, last] = [one.children[0], one.children.at(-1)];
    assert(Math.abs((first.x + last.x + last.w) / 2 - (one.x + one.w / 2)) < SLIP, `seed ${seed}: a parent is not in the middle`);
    for (const [at, child] of one.children.entries()) {
      assert(child.y >= one.y + one.h + GAP.y - SLIP, `seed ${seed}: a child is not below its parent`);
      assert(at === 0 || child.x > one.children[at - 1].x, `seed ${seed}: children are out of order`);
    }
  }
}

// A chain as deep as no tree is.
const chain = [{ w: 5, h: 5, children: [] }];
while (chain.length < 2000) {
  const made = { w: 5, h: 5, children: [] };
  chain.at(-1).children.push(made);
  chain.push(made);
}
layout(chain[0], GAP);
assert(chain.every(({ x }) => x === chain[0].x));
console.log('ok');
