// Before anything is painted: light or dark, as somebody chose, and the side as it was left. All else waits.
'use strict';
try {
  const theme = JSON.parse(localStorage.getItem('banyan.theme') ?? 'null');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  if (JSON.parse(localStorage.getItem('banyan.side') ?? 'null') === false) document.documentElement.dataset.side = 'closed';
} catch { /* nothing is remembered */ }
