/**
 * Who is signed in, and whose Spotify is connected: the answer of GET /api/session, for all pages.
 *
 * This is all the state that pages share. It lives in memory only: the session itself is a cookie that no
 * script can read.
 */
import { reactive } from "vue";
import { api, onSignedOut, problemOf, type Problem, type Session, type User } from "./api";

interface State extends Session {
  /** Why it is not known who is here. */
  problem: Problem | null;
  /** The person was signed in, and found out by an answer that they no longer are. */
  ended: boolean;
}

export const session = reactive<State>({
  authenticated: false,
  user: null,
  spotify: null,
  problem: null,
  ended: false,
});

// Tells the other tabs that something changed, and nothing else.
const otherTabs = new BroadcastChannel("backline-session");

let first: Promise<void> | null = null;

/** Ask once; every page waits for the same answer. */
export function sessionKnown(): Promise<void> {
  first ??= refreshSession();
  return first;
}

/** Ask who is here now. */
export async function refreshSession(): Promise<void> {
  try {
    const before = session.user;
    Object.assign(session, await api.session(), { problem: null });
    session.ended = Boolean(before) && !session.user;
  } catch (error) {
    session.problem = problemOf(error);
    first = null; // the next page asks again
  }
}

/** Something has changed: see what, and tell the other tabs. */
export async function sessionChanged(): Promise<void> {
  first = refreshSession();
  await first;
  otherTabs.postMessage("changed");
}

/** The person has signed out on purpose, here. */
export function forgetSession(): void {
  Object.assign(session, { authenticated: false, user: null, spotify: null, ended: false });
  otherTabs.postMessage("changed");
}

export function userChanged(user: User): void {
  session.user = user;
  otherTabs.postMessage("changed");
}

onSignedOut((problem) => {
  if (!session.user) return;
  if (problem.slug === "not-signed-in") {
    Object.assign(session, { authenticated: false, user: null, spotify: null, ended: true });
  } else {
    void refreshSession();
  }
});

otherTabs.onmessage = () => void refreshSession();

// Another browser may have ended this session, and the way back from Spotify may be the back button.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && session.user) void refreshSession();
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) void refreshSession();
});
