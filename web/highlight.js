// Colours for code, a line at a time: comments, strings, numbers, keywords, names. A reader's help, not a compiler's opinion.

/**
 * @typedef {{words: Set<string>, line: string[], block: [string, string][], text: string[]}} Language
 * @typedef {{kind: string, s: string}} Token
 */

/** Longer lines are data. */
const LINE_MAX = 2000;

/** @param {string} words */
const set = (words) => new Set(words.split(' '));

// Languages with braces share their keywords: what is one of them in another is seldom a name in this one.
const BRACES = set('if else for while do switch case break continue return default const static enum struct void int long char float double bool true false null undefined nil let var function fn func def new this self super try catch finally throw class public private protected extends implements interface abstract final import export from package namespace using template virtual async await yield typeof instanceof in of as type impl trait pub use mod crate match loop move ref mut where unsafe dyn map chan go defer range select string override auto unsigned include define');
/** @type {[string, string][]} */
const BLOCK = [['/*', '*/']];
const QUOTES = ['"', "'"];

/** @type {Record<string, Language>} */
const LANGUAGES = {
  c: { words: BRACES, line: ['//'], block: BLOCK, text: QUOTES },
  js: { words: BRACES, line: ['//'], block: [...BLOCK, ['`', '`']], text: QUOTES },
  python: {
    words: set('def class return if elif else for while break continue pass import from as with try except finally raise lambda yield in is not and or None True False global nonlocal async await assert del match case self'),
    line: ['#'], block: [['"""', '"""'], ["'''", "'''"]], text: QUOTES,
  },
  rust: { words: BRACES, line: ['//'], block: BLOCK, text: ['"'] },
  sh: {
    words: set('if then else elif fi for while until do done case esac in function return exit export local set echo cd sudo source'),
    line: ['#'], block: [], text: QUOTES,
  },
  sql: {
    words: set('select from where and or not insert into values update set delete create table drop alter index view join left right outer on as group by order having limit offset union distinct null is in like case when then else end'),
    line: ['--'], block: BLOCK, text: QUOTES,
  },
  css: { words: set('important media'), line: [], block: BLOCK, text: QUOTES },
  data: { words: set('true false null yes no on off'), line: ['#'], block: [], text: QUOTES },
  markup: { words: new Set(), line: [], block: [['<!--', '-->']], text: QUOTES },
};

/** @type {Record<string, string>} */
const NAMES = {
  javascript: 'js', ts: 'js', typescript: 'js', tsx: 'js', py: 'python', rs: 'rust', go: 'js', golang: 'js',
  'c++': 'c', cpp: 'c', h: 'c', java: 'c', cs: 'c', csharp: 'c', kotlin: 'c', swift: 'c', php: 'c',
  bash: 'sh', shell: 'sh',
  scss: 'css', json: 'data', yaml: 'data', yml: 'data', toml: 'data',
  html: 'markup', xml: 'markup', svg: 'markup',
};

/** @param {string} name as it stands behind a fence */
export function language(name) {
  if (name === 'diff' || name === 'patch') return 'diff';
  const known = NAMES[name] ?? name;
  return Object.hasOwn(LANGUAGES, known) ? known : null;
}

/**
 * The tokens of a line, and within what the next one begins: the end that is waited for, or ''.
 * @param {string|null} name of a language @param {string} line @param {string} within
 * @returns {[Token[], string]}
 */
export function tokens(name, line, within) {
  if (name === null || line.length > LINE_MAX) return [[{ kind: '', s: line }], within];
  if (name === 'diff') {
    const kind = /^(\+\+\+|---|@@|diff |index )/.test(line) ? 'n' : line.startsWith('+') ? 's' : line.startsWith('-') ? 'd' : '';
    return [[{ kind, s: line }], ''];
  }
  const known = LANGUAGES[name];
  /** @type {Token[]} */
  const found = [];
  const add = (/** @type {string} */ kind, /** @type {string} */ s) => {
    const last = found[found.length - 1];
    if (last && last.kind === kind) last.s += s;
    else if (s !== '') found.push({ kind, s });
  };
  let at = 0;
  if (within !== '') {
    const end = line.indexOf(within);
    const kind = within === '*/' || within === '-->' ? 'c' : 's';
    if (end < 0) return [[{ kind, s: line }], within];
    at = end + within.length;
    add(kind, line.slice(0, at));
  }
  const word = /[\p{L}_$@][\p{L}\p{N}_$-]*/uy;
  const number = /\d[\w.]*/y;
  while (at < line.length) {
    const rest = (/** @type {string} */ start) => line.startsWith(start, at);
    const block = known.block.find(([open]) => rest(open));
    if (block) {
      const end = line.indexOf(block[1], at + block[0].length);
      const kind = block[1] === '*/' || block[1] === '-->' ? 'c' : 's';
      if (end < 0) {
        add(kind, line.slice(at));
        return [found, block[1]];
      }
      add(kind, line.slice(at, end + block[1].length));
      at = end + block[1].length;
      continue;
    }
    // A # within a word, as in shells' $#, begins no comment.
    if (known.line.some(rest) && (line[at] !== '#' || at === 0 || /[\s;(]/.test(line[at - 1]))) {
      add('c', line.slice(at));
      return [found, ''];
    }
    const char = line[at];
    if (known.text.includes(char) && (name !== 'markup' || line.lastIndexOf('<', at) > line.lastIndexOf('>', at))) {
      let end = at + 1;
      while (end < line.length && line[end] !== char) end += line[end] === '\\' ? 2 : 1;
      const s = line.slice(at, end + 1);
      add(name === 'data' && /^\s*:/.test(line.slice(end + 1, end + 4)) ? 'f' : 's', s);
      at = end + 1;
      continue;
    }
    word.lastIndex = at;
    const spelled = word.exec(line)?.[0];
    if (spelled) {
      const plain = name === 'css' || name === 'data' || name === 'markup' ? spelled : spelled.split('-', 1)[0];
      add(kindOf(name, known, plain, line, at), plain);
      at += plain.length;
      continue;
    }
    number.lastIndex = at;
    const digits = number.exec(line)?.[0];
    add(digits ? 'n' : '', digits ?? char);
    at += digits ? digits.length : 1;
  }
  return [found, ''];
}

/** @param {string} name @param {Language} known @param {string} word @param {string} line @param {number} at */
function kindOf(name, known, word, line, at) {
  const before = line[at - 1];
  const after = line[at + word.length];
  if (name === 'markup') return before === '<' || before === '/' ? 'k' : after === '=' ? 'f' : '';
  if (name === 'data' || name === 'css') {
    if (known.words.has(word)) return 'k';
    return after === ':' || after === '=' || (after === ' ' && line[at + word.length + 1] === '=') ? 'f' : '';
  }
  if (known.words.has(name === 'sql' ? word.toLowerCase() : word)) return 'k';
  if (after === '(' || (after === '!' && name === 'rust')) return 'f';
  return /^[A-Z]/.test(word) && /[a-z]/.test(word) ? 't' : '';
}
