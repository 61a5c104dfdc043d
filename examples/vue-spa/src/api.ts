/**
 * The one way to the API: every request of the app goes through here.
 *
 * axios is set up once; what goes wrong comes back as one kind of error, `ApiError`, with a `Problem` that
 * a page can show as it is. The types of bodies and answers are generated from the API's own document
 * (`npm run types`).
 */
import axios, { type AxiosError, type AxiosRequestConfig, type AxiosResponse } from "axios";
import type { components } from "./api-types";
import { inWords } from "./words";

type Schemas = components["schemas"];
export type User = Schemas["UserOut"];
export type Session = Schemas["SessionOut"];
export type Connection = Schemas["SpotifyOut"];
export type ListedSession = Schemas["ListedSessionOut"];

/** Where the API is. It stands in the page, so that one build serves any API; see README.md. */
const apiUrl = document.querySelector<HTMLMetaElement>('meta[name="api-url"]')?.content ?? "";

const http = axios.create({
  // Every path below begins with /api. With an empty address they go to the app's own origin.
  baseURL: apiUrl,
  // Send the session's cookie to another origin, and keep the one it answers with.
  withCredentials: true,
  // The API turns away what changes something without this header: another site's form cannot set it.
  headers: { "X-Requested-With": "XMLHttpRequest", Accept: "application/json" },
  // The API asks Spotify for 15 s at most. What takes longer than this will not come.
  timeout: 20_000,
  // The API has no token in a cookie that would have to be copied into a header.
  xsrfCookieName: undefined,
  // A body that promises JSON and is none is an error here, not a string that surprises a page.
  transitional: { silentJSONParsing: false },
  responseType: "json",
});

/** What went wrong, in words for the person; `slug` is for the program. */
export interface Problem {
  slug: string;
  title: string;
  detail: string;
  /** The HTTP status; 0 when there was no answer. */
  status: number;
  /** Field -> what is wrong with it. */
  errors: Record<string, string[]>;
  /** Seconds until another attempt makes sense. */
  retryAfter?: number;
  /** What to tell the people who run the API: their log has it. */
  requestId?: string;
  /** Where to send the person, when Spotify has to be connected again. */
  authorizeUrl?: string;
  /** Spotify's own reason, such as PREMIUM_REQUIRED. */
  reason?: string;
}

export class ApiError extends Error {
  constructor(readonly problem: Problem) {
    super(problem.title);
  }
}

/** The problem of whatever was thrown. A fault of the app itself is one as well, and goes to the console. */
export function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) return error.problem;
  console.error(error);
  return { slug: "app-fault", status: 0, errors: {}, ...inWords("app-fault") };
}

// --- Trying again ------------------------------------------------------------------------------------

const RETRIES = 2;
const LONGEST_WAIT_S = 3;

declare module "axios" {
  interface AxiosRequestConfig {
    /** How often this request was sent again already. Set it to `RETRIES` for one that is not to be. */
    attempts?: number;
  }
}

/** For calls that are made every second anyway. */
export const ONCE: AxiosRequestConfig = { attempts: RETRIES };

/**
 * How many seconds to wait before the request is sent once more; undefined: do not.
 *
 * Only what changes nothing is repeated: of anything else nobody knows whether it took effect.
 */
function waitBeforeRetry(error: AxiosError): number | undefined {
  const { config, response } = error;
  const attempts = config?.attempts ?? 0;
  if (config?.method !== "get" || attempts >= RETRIES || axios.isCancel(error)) return undefined;
  if (!response) return navigator.onLine ? 0.4 * (attempts + 1) : undefined;
  if (![502, 503, 504].includes(response.status)) return undefined;
  const wait = secondsUntilRetry(response) ?? 1;
  return wait <= LONGEST_WAIT_S ? wait : undefined;
}

/** What Retry-After says: seconds, or a date (RFC 9110, section 10.2.3). */
function secondsUntilRetry(response: AxiosResponse): number | undefined {
  const header = String(response.headers["retry-after"] ?? "").trim();
  if (/^\d{1,9}(\.\d*)?$/.test(header)) return Math.ceil(Number(header));
  const date = /^[A-Za-z]/.test(header) ? Date.parse(header) : NaN;
  return Number.isNaN(date) ? undefined : Math.max(0, Math.ceil((date - Date.now()) / 1000));
}

// --- What comes back ---------------------------------------------------------------------------------

let signedOut: (problem: Problem) => void = () => undefined;

/** Says what happens when the API no longer knows the person. There is one listener: `session.ts`. */
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
  // The gateway is open to visitors who connected Spotify without an account, so to a session that has
  // ended it does not say that nobody is signed in, but that nothing is connected.
  if (["not-signed-in", "spotify-not-connected"].includes(problem.slug)) signedOut(problem);
  throw new ApiError(problem);
});

function asProblem(error: AxiosError): Problem {
  const { response } = error;
  if (!response) {
    const slug = navigator.onLine ? "no-answer" : "offline";
    return { slug, status: 0, errors: {}, ...inWords(slug) };
  }
  const common = {
    status: response.status,
    retryAfter: secondsUntilRetry(response),
    requestId: response.headers["x-request-id"] as string | undefined,
  };
  if (!String(response.headers["content-type"]).startsWith("application/problem+json")) {
    return { ...common, ...spotifysOwn(response) };
  }
  const body = response.data as Schemas["ProblemOut"];
  const slug = body.type.replace("/problems/", "");
  const words = inWords(slug, body);
  const errors = (body.errors ?? {}) as Record<string, string[]>;
  return { ...common, slug, errors, authorizeUrl: body.authorize_url, ...words };
}

/** An error that the gateway passed on from Spotify: JSON with a message and perhaps a reason, or plain text. */
function spotifysOwn(response: AxiosResponse): Pick<Problem, "slug" | "title" | "detail" | "errors" | "reason"> {
  // Its errors of 5xx are often pages for a browser; nothing in them helps anybody here.
  if (response.status >= 500) return { slug: "spotify-unavailable", errors: {}, ...inWords("spotify-unavailable") };
  const data = response.data as { error?: { message?: string; reason?: string } } | string | null;
  const said = typeof data === "string" ? { message: data.slice(0, 200), reason: undefined } : data?.error;
  const words = inWords(said?.reason ?? "spotify-answered", { detail: said?.message });
  return { slug: "spotify-answered", reason: said?.reason, errors: {}, ...words };
}

async function get<T>(path: string, config?: AxiosRequestConfig): Promise<T> {
  return (await http.get<T>(path, config)).data;
}

/** For commands to Spotify: since 2024 it answers some with 200 and a bare word that it labels as JSON. */
const COMMAND: AxiosRequestConfig = {
  responseType: "text",
  // A success is told by its status alone. A refusal may say why, if it can be read.
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

// --- The API, call by call ---------------------------------------------------------------------------

export const api = {
  session: () => get<Session>("/api/session"),
  register: (body: Schemas["Registration"]) => send<User>("POST", "/api/register", body),
  signIn: (body: Schemas["Credentials"]) => send<User>("POST", "/api/login", body),
  signOut: () => send("POST", "/api/logout"),

  askForNewPassword: (body: Schemas["EmailOnly"]) => send("POST", "/api/password-reset", body),
  setNewPassword: (body: Schemas["NewPassword"]) => send("PUT", "/api/password-reset", body),
  askToVerifyEmail: () => send("POST", "/api/email-verification"),
  verifyEmail: (body: Schemas["TokenOnly"]) => send("PUT", "/api/email-verification", body),
  undoEmailChange: (body: Schemas["EmailChangeDecision"]) => send("PUT", "/api/email-change", body),

  changeProfile: (body: Schemas["ProfileChange"]) => send<User>("PATCH", "/api/user", body),
  changePassword: (body: Schemas["PasswordChange"]) => send("PUT", "/api/user/password", body),
  deleteAccount: (body: Schemas["KnownPassword"]) => send("DELETE", "/api/user", body),
  exportData: () => get<Schemas["ExportOut"]>("/api/user/export"),
  sessions: () => get<Schemas["SessionsOut"]>("/api/user/sessions"),
  // Ending sessions takes the password, unless the person has signed in within the last 15 minutes.
  endSession: (id: string, current_password?: string) =>
    send("DELETE", `/api/user/sessions/${encodeURIComponent(id)}`, current_password ? { current_password } : undefined),
  endOtherSessions: (current_password?: string) =>
    send("DELETE", "/api/user/sessions", current_password ? { current_password } : undefined),

  /** Begins to connect Spotify; with what Spotify sent the person back with, finishes it. */
  authorize: (params: Record<string, string> = {}) =>
    // Not sent twice: it may spend a code that is good once.
    get<Schemas["AuthorizeOut"]>("/api/spotify/authorize", { params, ...ONCE }),
  disconnect: () => send("DELETE", "/api/spotify"),

  /** Spotify's Web API on the person's behalf: see spotify.ts. */
  spotify: <T>(path: string, config?: AxiosRequestConfig) => get<T>(`/api/spotify/v1${path}`, config),
  tellSpotify: async (method: string, path: string, body?: object): Promise<void> => {
    await http.request({ method, url: `/api/spotify/v1${path}`, data: body, ...COMMAND });
  },
};
