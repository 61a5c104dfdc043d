"use strict";

// Without an app, the browser returns to this page after connecting Spotify.
const result = new URLSearchParams(location.search).get("spotify");
if (result && /^[a-z-]+$/.test(result)) {
  const line = document.getElementById("result");
  line.textContent = {
    connected: "Spotify is connected. Try GET /api/spotify below.",
    denied: "Spotify was not connected: access was denied.",
  }[result] || `Spotify was not connected: ${result.replace(/^error-/, "")}.`;
  line.style.cssText = "font: 16px/1.5 sans-serif; padding: 1em 20px; background: #e8f5ec; color: #14351f";
  line.hidden = false;
}

SwaggerUIBundle({
  url: "/api/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  // The browser adds the session cookie. Requests that change something also need this header.
  requestInterceptor: (request) => {
    request.headers["X-Requested-With"] = "backline-docs";
    // OpenAPI has no parameters that contain slashes, but paths of the Web API do. They may also have a query.
    request.url = request.url.replace(/(?<=\/api\/spotify\/v1\/).*/, (path) => encodeURI(decodeURIComponent(path)));
    return request;
  },
});
