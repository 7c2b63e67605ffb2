// Opens the page where there is no line: its parts as they were last seen. What the API says is never kept here.

const NAME = 'banyan-page';
/** The server is asked first, so that a new one's page is there at once; then it has this long, in milliseconds. */
const PATIENCE = 3000;
const PARTS = [
  '/', '/answers.js', '/api.js', '/app.js', '/cache.js', '/conversation.js', '/dialog.js', '/dom.js', '/highlight.js', '/home.js',
  '/icon-192.png', '/icon.svg', '/icons.svg', '/inline.js', '/kept.js', '/manifest.webmanifest', '/markdown.js', '/options.js',
  '/render.js', '/servers.js', '/settings.js', '/share.js', '/side.js', '/style.css', '/theme.js', '/thread.js', '/transfer.js', '/turn.js',
  '/why.js', '/words.js', '/words/en.js', '/words/es.js', '/words/zh.js',
];

self.addEventListener('install', (event) => {
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(PARTS)).then(() => self.skipWaiting()));
});

self.addEventListener('activate', (event) => {
  event.waitUntil(self.clients.claim());
});

self.addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  const { origin, pathname } = new URL(url);
  if (method === 'GET' && origin === self.location.origin && PARTS.includes(pathname)) event.respondWith(part(event, pathname));
});

async function part(event, pathname) {
  const cache = await caches.open(NAME);
  const fresh = fetch(event.request).then((response) => {
    if (response.ok) event.waitUntil(cache.put(pathname, response.clone()));
    return response;
  });
  const kept = await cache.match(pathname);
  if (!kept) return fresh;
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE, kept));
  return Promise.race([fresh.then((response) => (response.ok ? response : kept), () => kept), late]);
}
