import type { components, paths } from "./openapi.js";

export type { components, paths };

/** The request and response bodies of the API, from its OpenAPI document. */
export type Schemas = components["schemas"];
export type Session = Schemas["SessionOut"];
export type User = Schemas["UserOut"];
export type Connection = Schemas["SpotifyOut"];

export interface BacklineOptions {
  /** The API's URL. Without it, requests go to the page's own origin. */
  url?: string;
  /**
   * A personal access token, for programs outside a browser. Without it, requests use the session cookie.
   * Never put a token into a page: everyone who opens the page could use it.
   */
  token?: string;
  /** Used instead of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
}

/** Client for one Backline API. All methods throw `ApiError` on failure. */
export declare class Backline {
  constructor(options?: BacklineOptions);

  // --- Session ---

  /** Return who is signed in, and their connection to Spotify. Apps call this first. It works for visitors too. */
  session(): Promise<Session>;
  /** Create an account and sign in to it. */
  register(body: Schemas["Registration"]): Promise<User>;
  signIn(body: Schemas["Credentials"]): Promise<User>;
  signOut(): Promise<void>;
  /**
   * Call the listener when a response shows that the session has ended, or that Spotify has been disconnected, since
   * the last call of `session()`. Returns a function that removes the listener.
   */
  onSessionChange(listener: (session: Session) => void): () => void;

  // --- Spotify ---

  /**
   * Connect Spotify: the browser goes to Spotify's consent page, and the promise stays pending. If Spotify is connected
   * already, with all `scopes`, it resolves instead. Fails with `not-signed-in` if a user was signed in according to the
   * last `session()`, but that session has ended.
   */
  connect(options?: ConnectOptions): Promise<Connection>;
  /**
   * Complete `connect()` on the page that Spotify returns to, and return the result; null if the URL has none.
   *
   * `SPOTIFY_REDIRECT_URI` can be at the API, which then redirects to the page with `?spotify=…`, or a page of the app,
   * which gets `?code=…&state=…`. This method handles both. Afterward, remove the parameters from the address bar.
   */
  completeConnect(url?: string | URL): Promise<ConnectResult | null>;
  /** Disconnect Spotify. Its tokens and personal data are deleted. */
  disconnect(): Promise<void>;
  /** Spotify's Web API, on behalf of the person. */
  readonly spotify: WebApi;
  /**
   * Pass an access token to the Web Playback SDK: `new Spotify.Player({ getOAuthToken: backline.getOAuthToken, … })`.
   * The connection needs the scope `streaming`, and the API the setting `PLAYBACK_TOKEN_ENABLED`.
   */
  readonly getOAuthToken: (callback: (token: string) => void) => Promise<void>;

  // --- Everything else: one method for each HTTP method, typed by path ---

  get<P extends PathWith<"get">>(path: P, ...options: OptionsOf<P, "get">): Promise<ResultOf<P, "get">>;
  post<P extends PathWith<"post">>(path: P, ...options: OptionsOf<P, "post">): Promise<ResultOf<P, "post">>;
  put<P extends PathWith<"put">>(path: P, ...options: OptionsOf<P, "put">): Promise<ResultOf<P, "put">>;
  patch<P extends PathWith<"patch">>(path: P, ...options: OptionsOf<P, "patch">): Promise<ResultOf<P, "patch">>;
  delete<P extends PathWith<"delete">>(path: P, ...options: OptionsOf<P, "delete">): Promise<ResultOf<P, "delete">>;
}

export interface ConnectOptions {
  /** Ask for consent again, which renews the connection for six months. */
  reauthorize?: boolean;
  /** Permissions that are needed now, from the API's `SPOTIFY_OPTIONAL_SCOPES`, in addition to those granted before. */
  scopes?: string[];
  /** The page to return to, on the origin of the API's `FRONTEND_URL`: a path, with or without a query. */
  returnTo?: string;
  /**
   * Sign in with Spotify, or create an account without a password. The API offers it if `session()` returns
   * `spotify_sign_in`. Someone who is signed in connects as without it.
   */
  signIn?: boolean;
}

/**
 * `returnTo` is the page that `connect()` was given, if Spotify returned to another page of the app. Without it, the
 * API has redirected to that page already, or `connect()` was given none.
 */
export type ConnectResult =
  | { connected: true; returnTo?: string }
  /** `slug` says why, for example `spotify-access-denied`. */
  | { connected: false; slug: string; returnTo?: string };

export interface RequestOptions {
  /** False: do not repeat a failed read. */
  retry?: boolean;
  signal?: AbortSignal;
}

// --- Problems ---

/** What went wrong. */
export declare class ApiError extends Error {
  constructor(problem: Problem);
  /**
   * The kind of problem, for code: the last part of the API's `type`, or one of
   *
   * - `offline`, `no-response`: there is no response, so a change may or may not have happened
   * - `spotify-error`: Spotify rejected the request, see `reason`
   * - `unexpected-response`: the response is not from the API, but for example a proxy's page
   */
  slug: string;
  title: string;
  detail: string;
  /** The HTTP status; 0 without a response. */
  status: number;
  /** Messages by field, if the input is invalid. `_schema` has those that belong to no field. */
  errors: Record<string, string[]>;
  /** Seconds to wait before another attempt. */
  retryAfter?: number;
  /** Identifies the request in the API's log. */
  requestId?: string;
  /** Where to send the person if Spotify must be connected again, or lacks a permission. */
  authorizeUrl?: string;
  /** The permissions that a call needs and that were not granted, as far as they are known: for `connect({ scopes })`. */
  missingScopes?: string[];
  /** The page that `connect()` was given, if completing it failed. */
  returnTo?: string;
  /** Spotify's own reason, such as `PREMIUM_REQUIRED`. */
  reason?: string;
}

/** The properties of an `ApiError`. */
export type Problem = Omit<ApiError, keyof Error>;

// --- Spotify's Web API ---

/** Values of a query string. Undefined ones are left out. */
export type Query = Record<string, string | number | boolean | undefined>;

export interface WebApiOptions extends RequestOptions {
  query?: Query;
}

export interface WebApiChange extends Omit<WebApiOptions, "retry"> {
  /** Sent as JSON. A `Blob` is sent as it is, with its type: playlist covers are `image/jpeg`. */
  body?: object;
}

/** Spotify's Web API through the gateway. Paths are those of Spotify's reference, such as `me/player`. */
export interface WebApi {
  /** Read. The result is null if Spotify sends nothing (204), for example if nothing is playing. */
  get<T = unknown>(path: string, options?: WebApiOptions): Promise<T>;
  /** Change something. The result is null if Spotify sends no JSON: it confirms some commands with a bare word. */
  post<T = unknown>(path: string, options?: WebApiChange): Promise<T | null>;
  put<T = unknown>(path: string, options?: WebApiChange): Promise<T | null>;
  delete<T = unknown>(path: string, options?: WebApiChange): Promise<T | null>;
  /** A `fetch` for libraries: it sends requests for https://api.spotify.com/v1/ through the gateway. */
  readonly fetch: typeof globalThis.fetch;
}

/**
 * Return the arguments for the class `SpotifyApi` of `@spotify/web-api-ts-sdk`, which then sends its requests through
 * Backline: `new SpotifyApi(...webApiSdk(backline))`. Its errors are `ApiError`.
 */
export declare function webApiSdk(backline: Backline): [SdkAuthentication, SdkConfiguration];

export interface SdkAuthentication {
  setConfiguration(): void;
  getOrCreateAccessToken(): Promise<SdkAccessToken>;
  getAccessToken(): Promise<SdkAccessToken>;
  removeAccessToken(): void;
}

/** A placeholder: the SDK never gets a real token. */
export interface SdkAccessToken {
  access_token: string;
  token_type: string;
  expires_in: number;
  refresh_token: string;
  expires: number;
}

export interface SdkConfiguration {
  fetch: typeof globalThis.fetch;
  deserializer: { deserialize<T>(response: Response): Promise<T> };
  responseValidator: { validateResponse(response: Response): Promise<void> };
}

// --- Types by path ---

type Method = "get" | "post" | "put" | "patch" | "delete";

/** All but the gateway, which is `spotify`. */
type OtherPaths = Exclude<keyof paths, `${string}/v1/{path}`>;

export type PathWith<M extends Method> = {
  [P in OtherPaths]: paths[P] extends Record<M, { responses: unknown }> ? P : never;
}[OtherPaths];

type Operation<P extends PathWith<M>, M extends Method> = paths[P] extends Record<M, infer O> ? O : never;

/** The JSON of the successful responses; null if they have none. */
export type ResultOf<P extends PathWith<M>, M extends Method> =
  Operation<P, M> extends { responses: infer R }
    ? { [S in keyof R & Success]: JsonOf<R[S]> }[keyof R & Success]
    : never;

type Success = 200 | 201 | 202 | 204;

type JsonOf<R> = R extends { content: { "application/json": infer T } } ? T : null;

/** `body`, `path`, and `query` as the operation needs them. */
export type OptionsOf<P extends PathWith<M>, M extends Method> =
  Partial<Needed<Operation<P, M>>> extends Needed<Operation<P, M>>
    ? [options?: RequestOptions & Needed<Operation<P, M>>]
    : [options: RequestOptions & Needed<Operation<P, M>>];

type Needed<O> = BodyOf<O> & PathOf<O> & QueryOf<O>;

type BodyOf<O> = O extends { requestBody: { content: { "application/json": infer B } } }
  ? { body: B }
  : O extends { requestBody?: { content: { "application/json": infer B } } }
    ? { body?: B }
    : unknown;

type PathOf<O> = O extends { parameters: { path: infer T } } ? { path: T } : unknown;

type QueryOf<O> = O extends { parameters: { query?: infer Q } }
  ? Q extends object
    ? { query?: Q }
    : unknown
  : unknown;
