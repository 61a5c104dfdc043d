/**
 * Who is signed in, and the connection to Spotify: the response of GET /api/session, shared by all pages.
 *
 * Pages share no other state. It is in memory only; the session itself is a cookie that scripts cannot read.
 */
import { reactive } from "vue";
import type { Problem, Session, User } from "backline";
import { backline, problemOf } from "./api";

interface State extends Session {
  /** Why the session could not be loaded. */
  problem: Problem | null;
  /** The session ended without a sign-out here. */
  ended: boolean;
}

export const session = reactive<State>({
  authenticated: false,
  user: null,
  spotify: null,
  spotify_sign_in: undefined,
  problem: null,
  ended: false,
});

// Tells other tabs that something changed, and nothing else.
const otherTabs = new BroadcastChannel("backline-session");

let first: Promise<void> | null = null;

/** Load the session once. All pages wait for the same response. */
export function ensureSession(): Promise<void> {
  first ??= refreshSession();
  return first;
}

/** Load the session again. */
export async function refreshSession(): Promise<void> {
  try {
    show(await backline.session());
  } catch (error) {
    session.problem = problemOf(error);
    first = null; // the next page tries again
  }
}

function show(now: Session): void {
  const ended = Boolean(session.user) && !now.user;
  Object.assign(session, now, { ended, problem: null });
}

/** Load the session after a change, and tell other tabs. */
export async function sessionChanged(): Promise<void> {
  first = refreshSession();
  await first;
  otherTabs.postMessage("changed");
}

/** Clear the session after signing out here. */
export function clearSession(): void {
  Object.assign(session, { authenticated: false, user: null, spotify: null, ended: false });
  otherTabs.postMessage("changed");
}

export function userChanged(user: User): void {
  session.user = user;
  otherTabs.postMessage("changed");
}

// A response shows that the session has ended, or that Spotify is no longer connected.
backline.onSessionChange(show);

otherTabs.onmessage = () => void refreshSession();

// Another browser may have ended this session, and the back button may return from Spotify.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && session.user) void refreshSession();
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) void refreshSession();
});
