// Markdown read into plain data, block by block: what a model writes, as it is usually written (CommonMark and GitHub's tables,
// without HTML). Knows no page. Time grows with the length of the text, whatever is in it.

/**
 * @typedef {{task: boolean|null, blocks: Block[], src: string}} Item
 * @typedef {{t: 'p', text: string, src: string, line: number}
 *   | {t: 'h', level: number, text: string, src: string, line: number}
 *   | {t: 'code', lang: string, text: string, src: string, line: number}
 *   | {t: 'quote', blocks: Block[], src: string, line: number}
 *   | {t: 'list', ordered: boolean, start: number, tight: boolean, items: Item[], src: string, line: number}
 *   | {t: 'table', align: string[], rows: string[][], src: string, line: number}
 *   | {t: 'hr', src: string, line: number}} Block
 */

/** Deeper quotes and lists are text: no person nests them so. */
const DEPTH_MAX = 12;
const COLUMNS_MAX = 64;

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const UNDERLINE = /^ {0,3}(={3,}|-{3,})[ \t]*$/;
const DIVIDER = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** @param {string} text @returns {Block[]} */
export function parse(text) {
  return blocks(text.split('\n'), 0);
}

/** Where a block that begins at a line begins in a text. @param {string} text @param {number} line */
export function offset(text, line) {
  let at = 0;
  for (; line > 0; line -= 1) at = text.indexOf('\n', at) + 1;
  return at;
}

/** @param {string} line */
const blank = (line) => /^[ \t\r]*$/.test(line);
/** @param {string} line */
const indent = (line) => line.length - line.trimStart().length;

/** @param {string[]} lines @param {number} depth @returns {Block[]} */
function blocks(lines, depth) {
  /** @type {Block[]} */
  const out = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, end] = one(lines, at, depth);
    block.src = lines.slice(at, end).join('\n');
    block.line = at;
    out.push(block);
    at = end;
  }
  return out;
}

/** The block that begins at a line, and the line behind it. @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function one(lines, at, depth) {
  const line = lines[at];
  const placed = { src: '', line: at };
  const fence = opening(line);
  if (fence) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ t: 'h', level: heading[1].length, text: title(line.slice(heading[0].length)), ...placed }, at + 1];
  if (RULE.test(line)) return [{ t: 'hr', ...placed }, at + 1];
  if (depth < DEPTH_MAX) {
    if (QUOTE.test(line)) return quoted(lines, at, depth);
    const marker = MARKER.exec(line);
    if (marker) return listed(lines, at, marker, depth);
  }
  if (isTable(lines, at)) return tabled(lines, at);
  let end = at + 1;
  while (end < lines.length && !blank(lines[end])) {
    const under = UNDERLINE.exec(lines[end]);
    if (under) {
      const text = lines.slice(at, end).map((each) => each.trim()).join('\n');
      return [{ t: 'h', level: under[1].startsWith('=') ? 1 : 2, text, ...placed }, end + 1];
    }
    if (interrupts(lines, end, depth)) break;
    end += 1;
  }
  const text = lines.slice(at, end).map((each) => each.trimStart()).join('\n').trimEnd();
  return [{ t: 'p', text, ...placed }, end];
}

/** Whether a line ends the paragraph before it. @param {string[]} lines @param {number} at @param {number} depth */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (opening(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  if (depth >= DEPTH_MAX) return false;
  if (QUOTE.test(line)) return true;
  const marker = MARKER.exec(line);
  // A year at the beginning of a line begins no list, nor does a lone dash.
  return marker !== null && line.length > marker[0].length && (/[-*+]/.test(marker[2]) || /^1[.)]$/.test(marker[2]));
}

/** @param {string} line */
function opening(line) {
  const fence = FENCE.exec(line);
  // A span of code may begin with three as well.
  return fence && !(fence[1].startsWith('`') && fence[2].includes('`')) ? fence : null;
}

/** @param {string} text */
function title(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (end > 0 && trimmed[end - 1] === '#') end -= 1;
  return end === 0 || /[ \t]/.test(trimmed[end - 1]) ? trimmed.slice(0, end).trimEnd() : trimmed;
}

/** @param {string[]} lines @param {number} at @param {RegExpExecArray} fence @returns {[Block, number]} */
function fenced(lines, at, fence) {
  const inset = indent(lines[at]);
  let end = at + 1;
  const closes = (/** @type {string} */ line) => {
    const close = /^ {0,3}(`{3,}|~{3,})[ \t\r]*$/.exec(line);
    return close !== null && close[1][0] === fence[1][0] && close[1].length >= fence[1].length;
  };
  while (end < lines.length && !closes(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).map((line) => line.slice(Math.min(inset, indent(line)))).join('\n');
  const lang = fence[2].trim().split(/[\s{,:]/, 1)[0].toLowerCase().slice(0, 24);
  return [{ t: 'code', lang, text, src: '', line: at }, Math.min(end + 1, lines.length)];
}

/** @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function quoted(lines, at, depth) {
  const within = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    if (QUOTE.test(lines[end])) within.push(lines[end].replace(QUOTE, ''));
    else if (!blank(lines[end]) && !blank(within[within.length - 1]) && !interrupts(lines, end, depth)) within.push(lines[end]);
    else break;
  }
  return [{ t: 'quote', blocks: blocks(within, depth + 1), src: '', line: at }, end];
}

/** @param {string[]} lines @param {number} at @param {RegExpExecArray} first @param {number} depth @returns {[Block, number]} */
function listed(lines, at, first, depth) {
  const kind = first[2].slice(-1);
  /** @type {Item[]} */
  const items = [];
  let tight = true;
  let end = at;
  /** @type {RegExpExecArray|null} */
  let marker = first;
  while (marker) {
    const outer = marker[1].length;
    const inner = marker[0].length - outer - marker[2].length > 4 ? outer + marker[2].length + 1 : marker[0].length;
    const within = [lines[end].slice(inner)];
    const from = end;
    let gap = false;
    for (end += 1; end < lines.length; end += 1) {
      const line = lines[end];
      if (blank(line)) {
        gap = true;
        within.push('');
        continue;
      }
      // Models often indent by two what belongs to `1. `.
      if (indent(line) >= Math.min(inner, outer + 2)) {
        if (gap) tight = false;
        within.push(line.slice(Math.min(inner, indent(line))));
      } else if (!gap && !MARKER.test(line) && !interrupts(lines, end, depth)) {
        within.push(line.trimStart());
      } else {
        break;
      }
      gap = false;
    }
    while (within.length > 1 && blank(within[within.length - 1])) within.pop();
    const task = /^\[([ xX])\](?=[ \t]|$)/.exec(within[0]);
    if (task) within[0] = within[0].slice(4);
    items.push({ task: task ? task[1] !== ' ' : null, blocks: blocks(within, depth + 1), src: lines.slice(from, end).join('\n') });
    marker = end < lines.length && !RULE.test(lines[end]) ? MARKER.exec(lines[end]) : null;
    if (marker && marker[2].slice(-1) !== kind) marker = null;
    if (marker && gap) tight = false;
  }
  // Blank lines behind the last item belong to nobody.
  while (end > at + 1 && blank(lines[end - 1])) end -= 1;
  const ordered = kind === '.' || kind === ')';
  return [{ t: 'list', ordered, start: ordered ? Number.parseInt(first[2], 10) : 1, tight, items, src: '', line: at }, end];
}

/** @param {string[]} lines @param {number} at */
function isTable(lines, at) {
  const divider = lines[at + 1];
  return divider !== undefined && lines[at].includes('|') && divider.includes('|') && DIVIDER.test(divider)
    && cells(lines[at]).length === cells(divider).length;
}

/** @param {string[]} lines @param {number} at @returns {[Block, number]} */
function tabled(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'center' : 'end') : 'start'));
  const rows = [cells(lines[at])];
  let end = at + 2;
  for (; end < lines.length && !blank(lines[end]) && lines[end].includes('|'); end += 1) {
    const row = cells(lines[end]).slice(0, align.length);
    while (row.length < align.length) row.push('');
    rows.push(row);
  }
  return [{ t: 'table', align, rows, src: '', line: at }, end];
}

/** @param {string} line @returns {string[]} */
function cells(line) {
  const found = [];
  const text = line.trim().replace(/^\|/, '');
  let cell = '';
  for (let at = 0; at < text.length && found.length < COLUMNS_MAX; at += 1) {
    if (text[at] === '\\' && text[at + 1] === '|') {
      cell += '|';
      at += 1;
    } else if (text[at] === '|') {
      found.push(cell.trim());
      cell = '';
    } else {
      cell += text[at];
    }
  }
  if (cell.trim() !== '') found.push(cell.trim());
  return found;
}
