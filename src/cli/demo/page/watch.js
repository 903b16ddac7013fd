// Tells the page what Cache-Status said to each request that the browser makes for a <video>, and how fast it came.
"use strict";
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", event => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", event => {
  if (event.request.destination !== "video") return;
  event.respondWith(watch(event));
});

async function watch(event) {
  const begin = performance.now();
  // Past the browser's own cache: the table shows what the appliance says now.
  const response = await fetch(event.request, { cache: "no-store" });
  if (!response.body) return response;
  let bytes = 0;
  const say = async () => {
    const page = await self.clients.get(event.clientId);
    if (page) page.postMessage({
      path: new URL(event.request.url).pathname.slice(1),
      range: (response.headers.get("Content-Range") || "").replace(/^bytes |\/.*$/g, ""),
      status: response.headers.get("Cache-Status") || "",
      bytes, ms: performance.now() - begin,
    });
  };
  const reader = response.body.getReader();
  const body = new ReadableStream({
    async pull(controller) {
      const { done, value } = await reader.read();
      if (done) { controller.close(); say(); return; }
      bytes += value.byteLength;
      controller.enqueue(value);
    },
    cancel(reason) { say(); return reader.cancel(reason); },
  });
  return new Response(body, { status: response.status, statusText: response.statusText, headers: response.headers });
}
