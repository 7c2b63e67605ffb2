// Small things that this browser remembers: theme, language, drafts, servers. What a private window refuses to keep is not worth
// an error.

/** @param {string} name @returns {any} */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`banyan.${name}`) ?? 'null');
  } catch {
    return null;
  }
}

/** @param {string} name @param {unknown} value null forgets it */
export function keep(name, value) {
  try {
    if (value === null || value === '') localStorage.removeItem(`banyan.${name}`);
    else localStorage.setItem(`banyan.${name}`, JSON.stringify(value));
  } catch { /* not kept */ }
}
