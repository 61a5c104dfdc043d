/** Requests to the API, with authentication and retries. */

import { ApiError, fromResponse, parseJson, secondsUntilRetry, withoutResponse } from "./api-error.js";

/** @import { BacklineOptions, Query } from "../types/index.d.ts" */

/**
 * @typedef {object} Request
 * @property {BodyInit | null} [body]
 * @property {HeadersInit} [headers]
 * @property {Query} [query]
 * @property {boolean} [retry]
 * @property {AbortSignal | null} [signal]
 */

export const GATEWAY = "/api/spotify/v1/";

const RETRIES = 2;
const MAX_WAIT_S = 3;
const TIMEOUT_MS = 20_000; // the API waits for Spotify for at most 15 s

export class Http {
  #url;
  #token;
  #fetch;
  #onRejection;

  /**
   * @param {BacklineOptions} options
   * @param {() => void} onRejection called after responses that may mean that the session has ended
   */
  constructor({ url = "", token, fetch }, onRejection) {
    this.#onRejection = onRejection;
    this.#url = url.replace(/\/+$/, "");
    this.#token = token;
    this.#fetch = fetch ?? ((/** @type {Parameters<typeof globalThis.fetch>} */ ...args) => globalThis.fetch(...args));
  }

  /**
   * Send a request, and return the JSON of its response; null without a body.
   *
   * @param {string} method
   * @param {string} path
   * @param {Request} request
   * @returns {Promise<any>}
   */
  async json(method, path, request = {}) {
    const response = await this.fetch(method, path, request);
    const text = await response.text().catch(throwWithoutResponse);
    const isSpotify = path.startsWith(GATEWAY);
    if (response.ok) {
      const value = text === "" ? null : parseJson(text);
      if (value !== undefined) return value;
      // For the success of a command, the status is enough: Spotify confirms some with a bare word labeled as JSON.
      if (isSpotify && method !== "GET") return null;
    }
    throw fromResponse(response, text, isSpotify);
  }

  /**
   * Send a request, and return the response, successful or not.
   *
   * Only reads are repeated, because a change may have taken effect.
   *
   * @param {string} method
   * @param {string} path
   * @param {Request} request
   * @returns {Promise<Response>}
   * @throws {ApiError} without a response
   */
  async fetch(method, path, request = {}) {
    const retries = method === "GET" && request.retry !== false ? RETRIES : 0;
    for (let attempt = 1; ; attempt++) {
      const result = await this.#attempt(method, path, request).catch(withoutResponse);
      request.signal?.throwIfAborted();
      const wait = attempt <= retries ? waitBeforeRetry(result, attempt) : undefined;
      if (wait === undefined) {
        if (result instanceof ApiError) throw result;
        // Visitors can use the gateway without an account. After the end of a session, it therefore says that Spotify
        // is not connected (409) rather than that no one is signed in (401).
        if (result.status === 401 || result.status === 409) this.#onRejection();
        return result;
      }
      await new Promise((done) => setTimeout(done, wait * 1000));
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {Request} request
   */
  #attempt(method, path, { body, headers: extra, query = {}, signal }) {
    const headers = new Headers(extra);
    headers.set("Accept", "application/json");
    if (this.#token) headers.set("Authorization", `Bearer ${this.#token}`);
    // The API rejects requests with the cookie without this header, which another site's form cannot set.
    else headers.set("X-Requested-With", "XMLHttpRequest");
    const timeout = AbortSignal.timeout(TIMEOUT_MS);
    return this.#fetch(`${this.#url}${path}${queryString(query)}`, {
      method,
      body,
      headers,
      // Send and store the session cookie, also if the API is on another origin.
      credentials: this.#token ? "omit" : "include",
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
  }
}

/**
 * How many seconds to wait before a read is repeated; undefined: do not repeat it.
 *
 * @param {Response | ApiError} result
 * @param {number} attempt
 */
function waitBeforeRetry(result, attempt) {
  if (result instanceof ApiError) return result.slug === "no-response" ? 0.4 * attempt : undefined;
  if (![429, 502, 503, 504].includes(result.status)) return undefined;
  const wait = secondsUntilRetry(result.headers.get("Retry-After")) ?? 1;
  return wait <= MAX_WAIT_S ? wait : undefined;
}

/** @param {Query} query */
function queryString(query) {
  const pairs = Object.entries(query).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]]));
  return pairs.length > 0 ? `?${new URLSearchParams(pairs)}` : "";
}

/**
 * @param {unknown} cause
 * @returns {never}
 */
function throwWithoutResponse(cause) {
  throw withoutResponse(cause);
}

/**
 * The body and the headers of a request.
 *
 * @param {object | undefined} body
 */
export function encode(body) {
  if (body === undefined || body instanceof Blob) return { body }; // fetch sends the type of a Blob
  return { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
}
