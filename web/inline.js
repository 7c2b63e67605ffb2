// What stands within a block of Markdown, read into plain data: emphasis, code, links. Time grows with the length of the text, whatever
// is in it.

/** @typedef {{t: 'text'|'code', s: string} | {t: 'br'} | {t: 'em'|'strong'|'del', c: Inline[]} | {t: 'a', href: string, c: Inline[]}} Inline */

/** Emphasis within emphasis. */
const MARKS_MAX = 16;
/** A paragraph's text behind this many characters is shown as it is written. */
const INLINE_MAX = 20_000;
const ADDRESS_MAX = 2048;

/** @type {Record<string, string>} */
const ENTITIES = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0' };
const SPECIAL = /[\\`*_~[\]<&\n]|\$\$|\bhttps?:\/\//g;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WIDE = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/;

/**
 * A run of marks, with the tags that it closes and opens.
 * @typedef {{t: 'marks', mark: string, left: number, opens: boolean, closes: boolean, begin: string[], end: string[]}} Marks
 * @typedef {Inline | Marks} Piece
 */

/** @param {string} source @returns {Inline[]} */
export function inline(source) {
  const text = source.slice(0, INLINE_MAX);
  const pieces = read(text);
  if (source.length > INLINE_MAX) pieces.push({ t: 'text', s: source.slice(INLINE_MAX) });
  return nested(pieces);
}

/** @param {string} text @returns {Piece[]} */
function read(text) {
  /** @type {Piece[]} */
  const pieces = [];
  /** Where brackets are open, as places in `pieces`. @type {number[]} */
  const brackets = [];
  /** Marks that nothing closes any more, so that none is looked for twice. @type {Set<string>} */
  const unclosed = new Set();
  let plain = '';
  const flush = () => {
    if (plain !== '') pieces.push({ t: 'text', s: plain });
    plain = '';
  };
  /** @param {Inline} piece */
  const push = (piece) => {
    flush();
    pieces.push(piece);
  };
  /** @param {string} close @param {number} from */
  const find = (close, from) => {
    const found = unclosed.has(close) ? -1 : text.indexOf(close, from);
    if (found < 0) unclosed.add(close);
    return found;
  };
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    const next = special ? special.index : text.length;
    plain += text.slice(at, next);
    at = next;
    if (!special) break;
    const mark = special[0];
    if (mark === '\n') {
      // Models break lines where they mean it.
      plain = plain.replace(/ {1,8}$/, '');
      push({ t: 'br' });
      at += 1;
    } else if (mark === '\\') {
      const escaped = text[at + 1] ?? '';
      const formula = escaped === '(' ? '\\)' : escaped === '[' ? '\\]' : null;
      const end = formula ? find(formula, at + 2) : -1;
      if (end > 0) {
        push({ t: 'code', s: text.slice(at + 2, end).trim() });
        at = end + 2;
      } else if (PUNCTUATION.test(escaped)) {
        plain += escaped;
        at += 2;
      } else {
        plain += '\\';
        at += 1;
      }
    } else if (mark === '$$') {
      const end = find('$$', at + 2);
      if (end > at + 2) push({ t: 'code', s: text.slice(at + 2, end).trim() });
      else plain += end < 0 ? '$$' : '$$$$';
      at = end < 0 ? at + 2 : end + 2;
    } else if (mark === '`') {
      const run = runs(text, at, '`');
      const end = span(text, at + run, run, unclosed);
      if (end < 0) {
        plain += text.slice(at, at + run);
        at += run;
      } else {
        const code = text.slice(at + run, end).replaceAll('\n', ' ');
        push({ t: 'code', s: /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code });
        at = end + run;
      }
    } else if (mark === '*' || mark === '_' || mark === '~') {
      const run = runs(text, at, mark);
      flush();
      pieces.push(marks(text, at, mark, run));
      at += run;
    } else if (mark === '[') {
      // A picture is a link to it: it is not fetched.
      const picture = plain.endsWith('!');
      if (picture) plain = plain.slice(0, -1);
      flush();
      brackets.push(pieces.length);
      pieces.push({ t: 'text', s: picture ? '![' : '[' });
      at += 1;
    } else if (mark === ']') {
      const open = brackets.pop();
      const goal = open === undefined ? null : destination(text, at + 1);
      const href = goal && address(goal.href);
      if (open !== undefined && goal && href) {
        flush();
        const within = nested(pieces.splice(open).slice(1));
        pieces.push({ t: 'a', href, c: within.length > 0 ? within : [{ t: 'text', s: goal.href }] });
        // No link in a link.
        brackets.length = 0;
        at = goal.end;
      } else {
        plain += ']';
        at += 1;
      }
    } else if (mark === '<') {
      const link = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8})>|<br ?\/?>/iy;
      link.lastIndex = at;
      const found = link.exec(text);
      const href = found?.[1] ? address(found[1].includes(':') ? found[1] : `mailto:${found[1]}`) : null;
      if (found && href) push({ t: 'a', href, c: [{ t: 'text', s: found[1] }] });
      else if (found && !found[1]) push({ t: 'br' });
      else plain += found ? found[0] : '<';
      at += found ? found[0].length : 1;
    } else if (mark === '&') {
      const entity = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|(\w{2,8}));/y;
      entity.lastIndex = at;
      const found = entity.exec(text);
      const known = found && decoded(found);
      plain += known ?? '&';
      at += known !== null && found ? found[0].length : 1;
    } else {
      const end = bare(text, at);
      const href = brackets.length > 0 ? null : address(text.slice(at, end));
      if (href) push({ t: 'a', href, c: [{ t: 'text', s: text.slice(at, end) }] });
      else plain += text.slice(at, end);
      at = end;
    }
  }
  flush();
  return pieces;
}

/** @param {string} text @param {number} at @param {string} mark */
function runs(text, at, mark) {
  let end = at;
  while (text[end] === mark) end += 1;
  return end - at;
}

/** Where as many backticks close a span. @param {string} text @param {number} from @param {number} run @param {Set<string>} unclosed */
function span(text, from, run, unclosed) {
  const name = `code ${run}`;
  if (unclosed.has(name)) return -1;
  for (let at = text.indexOf('`', from); at >= 0; ) {
    const found = runs(text, at, '`');
    if (found === run) return at;
    at = text.indexOf('`', at + found);
  }
  unclosed.add(name);
  return -1;
}

/** @param {string} text @param {number} at @param {string} mark @param {number} run @returns {Marks} */
function marks(text, at, mark, run) {
  const before = text[at - 1] ?? ' ';
  const after = text[at + run] ?? ' ';
  const space = /\s/;
  const sign = /[\p{P}\p{S}]/u;
  // Chinese and Japanese have no spaces between words.
  const left = !space.test(after) && (!sign.test(after) || space.test(before) || sign.test(before) || WIDE.test(before));
  const right = !space.test(before) && (!sign.test(before) || space.test(after) || sign.test(after) || WIDE.test(after));
  const within = mark === '_';
  return {
    t: 'marks', mark, left: run, begin: [], end: [],
    opens: left && (!within || !right || sign.test(before)) && (mark !== '~' || run === 2),
    closes: right && (!within || !left || sign.test(after)) && (mark !== '~' || run === 2),
  };
}

/** What stands behind a bracket. @param {string} text @param {number} from @returns {{href: string, end: number}|null} */
function destination(text, from) {
  if (text[from] !== '(') return null;
  const until = Math.min(text.length, from + ADDRESS_MAX);
  let at = from + 1;
  while (text[at] === ' ') at += 1;
  let href = '';
  if (text[at] === '<') {
    const end = text.indexOf('>', at);
    if (end < 0 || end > until) return null;
    href = text.slice(at + 1, end);
    at = end + 1;
  } else {
    const begin = at;
    let depth = 0;
    for (; at < until; at += 1) {
      const char = text[at];
      if (char === '(') depth += 1;
      else if (char === ')' && depth > 0) depth -= 1;
      else if (char === ')' || char === ' ' || char === '\n' || char === '[' || char === '<') break;
    }
    href = text.slice(begin, at);
  }
  while (text[at] === ' ') at += 1;
  const quote = text[at];
  if (quote === '"' || quote === "'") {
    const end = text.indexOf(quote, at + 1);
    if (end < 0 || end > until) return null;
    at = end + 1;
    while (text[at] === ' ') at += 1;
  }
  return text[at] === ')' ? { href, end: at + 1 } : null;
}

/** An address that may be followed; null for all others. @param {string} text @returns {string|null} */
export function address(text) {
  if (text.length > ADDRESS_MAX || !/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const { protocol, href } = new URL(text);
    return protocol === 'https:' || protocol === 'http:' || protocol === 'mailto:' ? href : null;
  } catch {
    return null;
  }
}

/** The end of an address without marks around it. @param {string} text @param {number} from */
function bare(text, from) {
  const until = Math.min(text.length, from + ADDRESS_MAX);
  let end = from;
  let open = 0;
  for (; end < until && !/[\s<>"`|[\]\u3000-\u303f\uff00-\uffef]/.test(text[end]); end += 1) {
    if (text[end] === '(') open += 1;
    if (text[end] === ')') open -= 1;
  }
  while (end > from && /[.,;:!?'"*_~\])]/.test(text[end - 1]) && !(text[end - 1] === ')' && open >= 0)) {
    if (text[end - 1] === ')') open += 1;
    end -= 1;
  }
  return end;
}

/** @param {RegExpExecArray} found */
function decoded(found) {
  if (found[3]) return ENTITIES[found[3]] ?? null;
  const code = found[1] ? Number.parseInt(found[1], 10) : Number.parseInt(found[2], 16);
  const shown = code >= 32 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return shown ? String.fromCodePoint(code) : '\ufffd';
}

/** Pairs marks up (CommonMark 0.31, "process emphasis"), and makes a tree of what is between them. @param {Piece[]} pieces @returns {Inline[]} */
function nested(pieces) {
  pair(pieces);
  /** @type {Inline[]} */
  const root = [];
  /** @type {Inline[][]} */
  const open = [root];
  const add = (/** @type {Inline} */ node) => {
    const here = open[open.length - 1];
    const last = here[here.length - 1];
    if (node.t === 'text' && last?.t === 'text') last.s += node.s;
    else if (node.t !== 'text' || node.s !== '') here.push(node);
  };
  for (const piece of pieces) {
    if (piece.t !== 'marks') {
      add(piece.t === 'text' ? { t: 'text', s: piece.s } : piece);
      continue;
    }
    for (let count = piece.end.length; count > 0; count -= 1) open.pop();
    add({ t: 'text', s: piece.mark.repeat(piece.left) });
    for (const tag of piece.begin.reverse()) {
      // What is nested too deeply stays where it is.
      if (open.length > MARKS_MAX) {
        open.push(open[open.length - 1]);
        continue;
      }
      /** @type {Inline[]} */
      const c = [];
      open[open.length - 1].push({ t: /** @type {'em'|'strong'|'del'} */ (tag), c });
      open.push(c);
    }
  }
  return root;
}

/** @param {Piece[]} pieces */
function pair(pieces) {
  /** @type {Marks[]} */
  const openers = [];
  /** Below which nothing of a kind is open. @type {Map<string, number>} */
  const bottom = new Map();
  for (const closer of pieces) {
    if (closer.t !== 'marks') continue;
    while (closer.closes && closer.left > 0) {
      const kind = `${closer.mark}${closer.opens}${closer.left % 3}`;
      const floor = Math.min(bottom.get(kind) ?? 0, openers.length);
      let at = openers.length - 1;
      while (at >= floor && !fits(openers[at], closer)) at -= 1;
      if (at < floor) {
        bottom.set(kind, openers.length);
        break;
      }
      const opener = openers[at];
      openers.length = at + 1;
      for (const [known, low] of bottom) if (low > at) bottom.set(known, at);
      const count = opener.left >= 2 && closer.left >= 2 ? 2 : 1;
      const tag = opener.mark === '~' ? 'del' : count === 2 ? 'strong' : 'em';
      opener.begin.push(tag);
      closer.end.push(tag);
      opener.left -= count;
      closer.left -= count;
      if (opener.left === 0) openers.pop();
    }
    if (closer.opens && closer.left > 0) openers.push(closer);
  }
}

/** @param {Marks} opener @param {Marks} closer */
function fits(opener, closer) {
  if (opener.mark !== closer.mark) return false;
  if (!opener.closes && !closer.opens) return true;
  return (opener.left + closer.left) % 3 !== 0 || (opener.left % 3 === 0 && closer.left % 3 === 0);
}
