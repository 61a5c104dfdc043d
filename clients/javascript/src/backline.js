/** The client. Its methods are described in types/index.d.ts. */

import { ApiError, sessionEnded } from "./api-error.js";
import { encode, Http } from "./http.js";
import { webApi } from "./web-api.js";

/** @import { BacklineOptions, Connection, ConnectOptions, ConnectResult, Query, RequestOptions, Schemas, Session, User } from "../types/index.d.ts" */

/** @typedef {RequestOptions & { body?: object, path?: Record<string, string | number>, query?: Query }} CallOptions */

const AUTHORIZE = "/api/spotify/authorize";

/** @type {Session} */
const NO_SESSION = { authenticated: false, user: null, spotify: null };

export class Backline {
  #http;
  /** @type {Session} */
  #session = NO_SESSION; // as last seen
  #isChecking = false;
  /** @type {Set<(session: Session) => void>} */
  #listeners = new Set();

  /** @param {BacklineOptions} options */
  constructor(options = {}) {
    this.#http = new Http(options, () => void this.#checkSession());
    this.spotify = webApi(this.#http);
    /** @param {(token: string) => void} callback */
    this.getOAuthToken = async (callback) => {
      /** @type {Schemas["TokenOut"]} */
      const { access_token } = await this.get("/api/spotify/token");
      callback(access_token);
    };
  }

  // --- Session ------------------------------------------------------------------------------------

  /** @returns {Promise<Session>} */
  async session() {
    this.#session = await this.get("/api/session");
    return this.#session;
  }

  /**
   * @param {Schemas["Registration"]} body
   * @returns {Promise<User>}
   */
  register(body) {
    return this.post("/api/register", { body });
  }

  /**
   * @param {Schemas["Credentials"]} body
   * @returns {Promise<User>}
   */
  signIn(body) {
    return this.post("/api/login", { body });
  }

  /** @returns {Promise<void>} */
  async signOut() {
    await this.post("/api/logout");
    this.#session = NO_SESSION;
  }

  /** @param {(session: Session) => void} listener */
  onSessionChange(listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  // --- Spotify ------------------------------------------------------------------------------------

  /** @param {ConnectOptions} options */
  async connect({ reauthorize, scopes = [], returnTo, signIn } = {}) {
    // The API would connect a visitor, or sign them in to another account.
    if (this.#session.user && !(await this.#reload()).user) throw sessionEnded();
    /** @type {Schemas["AuthorizeOut"]} */
    const { spotify, authorize_url } = await this.get(AUTHORIZE, {
      query: {
        reauthorize: reauthorize || undefined,
        scope: scopes.join(" ") || undefined,
        return_to: returnTo || undefined,
        intent: signIn ? "sign_in" : undefined,
      },
      retry: false,
    });
    if (authorize_url) {
      globalThis.location.assign(authorize_url);
      await new Promise(() => undefined); // until the browser leaves the page
    }
    return /** @type {Connection} */ (spotify);
  }

  /**
   * @param {string | URL} url
   * @returns {Promise<ConnectResult | null>}
   */
  async completeConnect(url = globalThis.location.href) {
    const params = new URL(url).searchParams;
    const result = params.get("spotify");
    if (result) return fromRedirect(result);
    if (!params.has("state") || !(params.has("code") || params.has("error"))) return null;
    try {
      const query = Object.fromEntries(params);
      /** @type {Schemas["AuthorizeOut"]} */
      const { return_to } = await this.get(AUTHORIZE, { query, retry: false }); // a code works only once
      return { connected: true, ...(return_to && { returnTo: return_to }) };
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      return { connected: false, slug: error.slug, ...(error.returnTo && { returnTo: error.returnTo }) };
    }
  }

  /** @returns {Promise<void>} */
  async disconnect() {
    await this.delete("/api/spotify");
  }

  // --- Everything else --------------------------------------------------------------------------

  /**
   * @param {string} path
   * @param {CallOptions} options
   */
  get(path, options = {}) {
    return this.#call("GET", path, options);
  }

  /**
   * @param {string} path
   * @param {CallOptions} options
   */
  post(path, options = {}) {
    return this.#call("POST", path, options);
  }

  /**
   * @param {string} path
   * @param {CallOptions} options
   */
  put(path, options = {}) {
    return this.#call("PUT", path, options);
  }

  /**
   * @param {string} path
   * @param {CallOptions} options
   */
  patch(path, options = {}) {
    return this.#call("PATCH", path, options);
  }

  /**
   * @param {string} path
   * @param {CallOptions} options
   */
  delete(path, options = {}) {
    return this.#call("DELETE", path, options);
  }

  /**
   * @param {string} method
   * @param {string} template
   * @param {CallOptions} options
   */
  #call(method, template, { path = {}, body, ...request }) {
    const filled = template.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(String(path[name])));
    return this.#http.json(method, filled, { ...request, ...encode(body) });
  }

  /** Load the session again, and call the listeners if it has changed. */
  async #reload() {
    const before = JSON.stringify(this.#session);
    const session = await this.session();
    if (JSON.stringify(session) !== before) this.#listeners.forEach((listener) => listener(session));
    return session;
  }

  async #checkSession() {
    if (this.#session === NO_SESSION || this.#isChecking) return;
    this.#isChecking = true;
    try {
      await this.#reload();
    } catch {
      // The next rejected request tries again.
    } finally {
      this.#isChecking = false;
    }
  }
}

/**
 * The result that the API puts into the URL: `connected`, `denied`, or `error-<slug>`.
 *
 * @param {string} result
 * @returns {ConnectResult}
 */
function fromRedirect(result) {
  if (result === "connected") return { connected: true };
  return { connected: false, slug: result === "denied" ? "spotify-access-denied" : result.replace(/^error-/, "") };
}
