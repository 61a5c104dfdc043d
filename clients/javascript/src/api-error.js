/** Failures, as described by the API's problem responses (RFC 9457) or derived from anything else. */

/** @import { Problem, Schemas } from "../types/index.d.ts" */

const PROBLEM_TYPE = "application/problem+json";

export class ApiError extends Error {
  /** @param {Problem} problem */
  constructor({
    slug,
    title,
    detail,
    status,
    errors,
    retryAfter,
    requestId,
    authorizeUrl,
    missingScopes,
    returnTo,
    reason,
  }) {
    super(detail ? `${title}: ${detail}` : title);
    this.name = "ApiError";
    this.slug = slug;
    this.title = title;
    this.detail = detail;
    this.status = status;
    this.errors = errors;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
    this.authorizeUrl = authorizeUrl;
    this.missingScopes = missingScopes;
    this.returnTo = returnTo;
    this.reason = reason;
  }
}

/**
 * The error for a request without a response.
 *
 * @param {unknown} cause
 */
export function withoutResponse(cause) {
  const offline = globalThis.navigator?.onLine === false;
  const error = new ApiError({
    slug: offline ? "offline" : "no-response",
    title: offline ? "You are offline" : "The server is not responding",
    detail: "",
    status: 0,
    errors: {},
  });
  error.cause = cause;
  return error;
}

/** The error for an action of someone who was signed in, but is no longer. */
export function sessionEnded() {
  const title = "Please sign in";
  return new ApiError({ slug: "not-signed-in", title, detail: "The session has ended.", status: 401, errors: {} });
}

/**
 * The error for an unsuccessful response, or for one that is not the expected JSON.
 *
 * @param {Response} response
 * @param {string} text its body
 * @param {boolean} isSpotify whether the gateway may have forwarded it from Spotify
 */
export function fromResponse(response, text, isSpotify) {
  const common = {
    status: response.status,
    errors: {},
    retryAfter: secondsUntilRetry(response.headers.get("Retry-After")),
    requestId: response.headers.get("X-Request-ID") ?? undefined,
  };
  const body = parseJson(text);
  if (response.headers.get("Content-Type")?.startsWith(PROBLEM_TYPE) && body?.type) {
    return new ApiError({ ...common, ...fromProblem(body) });
  }
  return new ApiError({ ...common, ...(isSpotify ? fromSpotify(response.status, body ?? text) : fromOther(response)) });
}

/** @param {Schemas["ProblemOut"]} body */
function fromProblem({ type, title, detail, errors, authorize_url, missing_scopes, return_to }) {
  return {
    slug: type.replace("/problems/", ""),
    title,
    detail,
    errors: /** @type {Record<string, string[]>} */ (errors ?? {}),
    authorizeUrl: authorize_url,
    missingScopes: missing_scopes,
    returnTo: return_to,
  };
}

/**
 * An error that the gateway forwarded from Spotify: JSON, plain text, or an HTML page without useful text.
 *
 * @param {number} status
 * @param {any} body
 */
function fromSpotify(status, body) {
  if (status >= 500) return { slug: "spotify-unavailable", title: "Spotify does not respond", detail: "" };
  const { message, reason } = typeof body === "string" ? { message: body.slice(0, 200) } : (body.error ?? {});
  return { slug: "spotify-error", title: "Spotify rejected the request", detail: message ?? "", reason };
}

/**
 * A response that does not come from the API, but for example from a server in front of it.
 *
 * @param {Response} response
 */
function fromOther({ status, statusText }) {
  if (status >= 500) return { slug: "service-unavailable", title: "The service is unavailable", detail: "" };
  return { slug: "unexpected-response", title: "Unexpected response", detail: `${status} ${statusText}`.trim() };
}

/**
 * The value of Retry-After, seconds or a date (RFC 9110, section 10.2.3), in seconds.
 *
 * @param {string | null} header
 */
export function secondsUntilRetry(header) {
  const value = header?.trim() ?? "";
  if (/^\d{1,9}(\.\d*)?$/.test(value)) return Math.ceil(Number(value));
  const date = /^[A-Za-z]/.test(value) ? Date.parse(value) : NaN;
  return Number.isNaN(date) ? undefined : Math.max(0, Math.ceil((date - Date.now()) / 1000));
}

/**
 * The value of a JSON text; undefined if it is not JSON.
 *
 * @param {string} text
 */
export function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
