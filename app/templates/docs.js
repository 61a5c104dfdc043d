"use strict";

// Without an SPA this page is where the browser comes back to after connecting Spotify.
const result = new URLSearchParams(location.search).get("spotify");
if (result && /^[a-z-]+$/.test(result)) {
  const line = document.getElementById("result");
  line.textContent = {
    connected: "Spotify is connected. Try GET /api/spotify below.",
    denied: "Spotify was not connected: access was not given.",
  }[result] || `Spotify was not connected: ${result.replace(/^error-/, "")}.`;
  line.style.cssText = "font: 16px/1.5 sans-serif; padding: 1em 20px; background: #e8f5ec; color: #14351f";
  line.hidden = false;
}

SwaggerUIBundle({
  url: "/api/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  // The session's cookie goes along by itself; every request that changes something needs this header.
  requestInterceptor: (request) => {
    request.headers["X-Requested-With"] = "backline-docs";
    // OpenAPI knows no parameter with slashes in it; a path of the Web API has some, and perhaps a query.
    request.url = request.url.replace(/(?<=\/api\/spotify\/v1\/).*/, (path) => encodeURI(decodeURIComponent(path)));
    return request;
  },
});
