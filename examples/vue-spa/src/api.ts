/**
 * The API client. Every request of the app goes through here.
 *
 * Failures are thrown as `ApiError`, with a `Problem` that pages can show as it is. The types of requests and
 * responses are generated from the API's OpenAPI document (`npm run types`).
 */
import axios, { type AxiosError, type AxiosRequestConfig, type AxiosResponse } from "axios";
import type { components } from "./api-types";
import { messageFor } from "./messages";

type Schemas = components["schemas"];
export type User = Schemas["UserOut"];
export type Session = Schemas["SessionOut"];
export type Connection = Schemas["SpotifyOut"];
export type ListedSession = Schemas["ListedSessionOut"];

/** The API's URL. It is in the page, so that one build works with any API: see README.md. */
const apiUrl = document.querySelector<HTMLMetaElement>('meta[name="api-url"]')?.content ?? "";

const http = axios.create({
  // If empty, requests go to the app's own origin.
  baseURL: apiUrl,
  // Send and keep the session cookie across origins.
  withCredentials: true,
  // The API rejects changes without this header, which another site's form cannot set.
  headers: { "X-Requested-With": "XMLHttpRequest", Accept: "application/json" },
  // The API waits for Spotify for at most 15 s.
  timeout: 20_000,
  // The API uses no token cookie that would have to be copied into a header.
  xsrfCookieName: undefined,
  // Invalid JSON is an error rather than a string.
  transitional: { silentJSONParsing: false },
  responseType: "json",
});

/** What went wrong: `title` and `detail` for people, `slug` for code. */
export interface Problem {
  slug: string;
  title: string;
  detail: string;
  /** The HTTP status; 0 without a response. */
  status: number;
  /** Error messages by field. */
  errors: Record<string, string[]>;
  /** Seconds to wait before another attempt. */
  retryAfter?: number;
  /** Identifies the request in the API's log. */
  requestId?: string;
  /** Where to send the person if Spotify must be connected again. */
  authorizeUrl?: string;
  /** Spotify's own reason, such as PREMIUM_REQUIRED. */
  reason?: string;
}

export class ApiError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.title);
  }
}

/** The problem of anything thrown. Errors of the app itself also go to the console. */
export function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) return error.problem;
  console.error(error);
  return { slug: "app-error", status: 0, errors: {}, ...messageFor("app-error") };
}

// --- Retries ------------------------------------------------------------------------------------

const RETRIES = 2;
const MAX_WAIT_S = 3;

declare module "axios" {
  interface AxiosRequestConfig {
    /** How many times the request was retried. `RETRIES` means: never retry. */
    attempts?: number;
  }
}

/** For calls that are repeated every second anyway, or must not be repeated. */
export const NO_RETRY: AxiosRequestConfig = { attempts: RETRIES };

/**
 * How many seconds to wait before a retry; undefined: do not retry.
 *
 * Only reads are retried: a change may have taken effect.
 */
function waitBeforeRetry(error: AxiosError): number | undefined {
  const { config, response } = error;
  const attempts = config?.attempts ?? 0;
  if (config?.method !== "get" || attempts >= RETRIES || axios.isCancel(error)) return undefined;
  if (!response) return navigator.onLine ? 0.4 * (attempts + 1) : undefined;
  if (![502, 503, 504].includes(response.status)) return undefined;
  const wait = secondsUntilRetry(response) ?? 1;
  return wait <= MAX_WAIT_S ? wait : undefined;
}

/** The value of Retry-After, seconds or a date (RFC 9110, section 10.2.3), in seconds. */
function secondsUntilRetry(response: AxiosResponse): number | undefined {
  const header = String(response.headers["retry-after"] ?? "").trim();
  if (/^\d{1,9}(\.\d*)?$/.test(header)) return Math.ceil(Number(header));
  const date = /^[A-Za-z]/.test(header) ? Date.parse(header) : NaN;
  return Number.isNaN(date) ? undefined : Math.max(0, Math.ceil((date - Date.now()) / 1000));
}

// --- Responses ---------------------------------------------------------------------------------

let signedOut: (problem: Problem) => void = () => undefined;

/** Set what happens when the session has ended. There is one listener: `session.ts`. */
export function onSignedOut(listener: (problem: Problem) => void): void {
  signedOut = listener;
}

http.interceptors.response.use(undefined, async (error: AxiosError) => {
  const wait = waitBeforeRetry(error);
  if (wait !== undefined && error.config) {
    await new Promise((done) => setTimeout(done, wait * 1000));
    return http.request({ ...error.config, attempts: (error.config.attempts ?? 0) + 1 });
  }
  const problem = asProblem(error);
  // Visitors can use the gateway without an account, so after the end of a session it says that Spotify is not
  // connected rather than that no one is signed in.
  if (["not-signed-in", "spotify-not-connected"].includes(problem.slug)) signedOut(problem);
  throw new ApiError(problem);
});

function asProblem(error: AxiosError): Problem {
  const { response } = error;
  if (!response) {
    const slug = navigator.onLine ? "no-response" : "offline";
    return { slug, status: 0, errors: {}, ...messageFor(slug) };
  }
  const common = {
    status: response.status,
    retryAfter: secondsUntilRetry(response),
    requestId: response.headers["x-request-id"] as string | undefined,
  };
  if (!String(response.headers["content-type"]).startsWith("application/problem+json")) {
    return { ...common, ...spotifyProblem(response) };
  }
  const body = response.data as Schemas["ProblemOut"];
  const slug = body.type.replace("/problems/", "");
  const message = messageFor(slug, body);
  const errors = (body.errors ?? {}) as Record<string, string[]>;
  return { ...common, slug, errors, authorizeUrl: body.authorize_url, ...message };
}

/** The problem for an error that the gateway forwarded from Spotify: JSON, or plain text. */
function spotifyProblem(response: AxiosResponse): Pick<Problem, "slug" | "title" | "detail" | "errors" | "reason"> {
  // 5xx responses are often HTML pages without useful text.
  if (response.status >= 500) return { slug: "spotify-unavailable", errors: {}, ...messageFor("spotify-unavailable") };
  const data = response.data as { error?: { message?: string; reason?: string } } | string | null;
  const error = typeof data === "string" ? { message: data.slice(0, 200), reason: undefined } : data?.error;
  const message = messageFor(error?.reason ?? "spotify-error", { detail: error?.message });
  return { slug: "spotify-error", reason: error?.reason, errors: {}, ...message };
}

async function get<T>(path: string, config?: AxiosRequestConfig): Promise<T> {
  return (await http.get<T>(path, config)).data;
}

/** For commands to Spotify: since 2024, it responds to some with 200 and a bare word labeled as JSON. */
const COMMAND: AxiosRequestConfig = {
  responseType: "text",
  // For success, the status is enough. An error may have a reason.
  transformResponse: (body: string, _headers: unknown, status?: number) => {
    if (status !== undefined && status < 400) return undefined;
    try {
      return JSON.parse(body) as unknown;
    } catch {
      return body;
    }
  },
};

async function send<T = void>(method: string, path: string, data?: object): Promise<T> {
  return (await http.request<T>({ method, url: path, data })).data;
}

// --- Endpoints ---------------------------------------------------------------------------

export const api = {
  session: () => get<Session>("/api/session"),
  register: (body: Schemas["Registration"]) => send<User>("POST", "/api/register", body),
  signIn: (body: Schemas["Credentials"]) => send<User>("POST", "/api/login", body),
  signOut: () => send("POST", "/api/logout"),

  requestPasswordReset: (body: Schemas["EmailOnly"]) => send("POST", "/api/password-reset", body),
  resetPassword: (body: Schemas["NewPassword"]) => send("PUT", "/api/password-reset", body),
  requestEmailVerification: () => send("POST", "/api/email-verification"),
  verifyEmail: (body: Schemas["TokenOnly"]) => send("PUT", "/api/email-verification", body),
  undoEmailChange: (body: Schemas["EmailChangeDecision"]) => send("PUT", "/api/email-change", body),

  changeProfile: (body: Schemas["ProfileChange"]) => send<User>("PATCH", "/api/user", body),
  changePassword: (body: Schemas["PasswordChange"]) => send("PUT", "/api/user/password", body),
  deleteAccount: (body: Schemas["KnownPassword"]) => send("DELETE", "/api/user", body),
  exportData: () => get<Schemas["ExportOut"]>("/api/user/export"),
  sessions: () => get<Schemas["SessionsOut"]>("/api/user/sessions"),
  // Ending sessions needs the password, unless the person signed in within the last 15 minutes.
  endSession: (id: string, current_password?: string) =>
    send("DELETE", `/api/user/sessions/${encodeURIComponent(id)}`, current_password ? { current_password } : undefined),
  endOtherSessions: (current_password?: string) =>
    send("DELETE", "/api/user/sessions", current_password ? { current_password } : undefined),

  /** Start connecting Spotify or, with the parameters of its redirect, complete it. */
  authorize: (params: Record<string, string> = {}) =>
    // A code works only once.
    get<Schemas["AuthorizeOut"]>("/api/spotify/authorize", { params, ...NO_RETRY }),
  disconnect: () => send("DELETE", "/api/spotify"),

  /** Spotify's Web API through the gateway: see spotify.ts. */
  spotify: <T>(path: string, config?: AxiosRequestConfig) => get<T>(`/api/spotify/v1${path}`, config),
  spotifyCommand: async (method: string, path: string, body?: object): Promise<void> => {
    await http.request({ method, url: `/api/spotify/v1${path}`, data: body, ...COMMAND });
  },
};
