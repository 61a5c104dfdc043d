/** Spotify's Web API through the gateway. */

import { encode, GATEWAY } from "./http.js";

/** @import { Http } from "./http.js" */
/** @import { WebApi, WebApiChange } from "../types/index.d.ts" */

const SPOTIFY = "https://api.spotify.com/v1/";

/**
 * @param {Http} http
 * @returns {WebApi}
 */
export function webApi(http) {
  const change =
    (/** @type {string} */ method) =>
    async (/** @type {string} */ path, /** @type {WebApiChange} */ { body, ...request } = {}) =>
      http.json(method, gatewayPath(path), { ...request, ...encode(body) });
  return {
    get: async (path, options) => http.json("GET", gatewayPath(path), options),
    post: change("POST"),
    put: change("PUT"),
    delete: change("DELETE"),
    fetch: (input, init) => fetchThrough(http, input, init),
  };
}

/**
 * Where a path is at the gateway. A path may contain an id from anywhere, and `..` in it must not lead elsewhere.
 *
 * @param {string} path
 */
function gatewayPath(path) {
  const found = GATEWAY + path.replace(/^\/+/, "");
  if (!new URL(found, SPOTIFY).pathname.startsWith(GATEWAY))
    throw new TypeError(`${path} is not a path of the Web API`);
  return found;
}

/**
 * @param {Http} http
 * @param {RequestInfo | URL} input
 * @param {RequestInit} [init]
 */
async function fetchThrough(http, input, init) {
  const request = new Request(input, init);
  if (!request.url.startsWith(SPOTIFY)) {
    throw new TypeError(`Only URLs that start with ${SPOTIFY} can be requested, unlike ${request.url}`);
  }
  const headers = new Headers(request.headers);
  headers.delete("Authorization"); // the library's own, for Spotify
  const body = await request.arrayBuffer();
  if (body.byteLength === 0) headers.delete("Content-Type");
  return http.fetch(request.method, gatewayPath(request.url.slice(SPOTIFY.length)), {
    body: body.byteLength > 0 ? body : null,
    headers,
    signal: request.signal,
  });
}
