/** The pages, who may see them, and what an address brings along when somebody arrives. */
import { createRouter, createWebHistory, type RouteLocationNormalized } from "vue-router";
import { tellResult } from "./connecting";
import Account from "./pages/Account.vue";
import Callback from "./pages/Callback.vue";
import ForgottenPassword from "./pages/ForgottenPassword.vue";
import Home from "./pages/Home.vue";
import NewPassword from "./pages/NewPassword.vue";
import NotFound from "./pages/NotFound.vue";
import NowPlaying from "./pages/NowPlaying.vue";
import Playlist from "./pages/Playlist.vue";
import Playlists from "./pages/Playlists.vue";
import SignIn from "./pages/SignIn.vue";
import SignUp from "./pages/SignUp.vue";
import TopTracks from "./pages/TopTracks.vue";
import UndoEmailChange from "./pages/UndoEmailChange.vue";
import VerifyEmail from "./pages/VerifyEmail.vue";
import { session, sessionChanged, sessionKnown } from "./session";

declare module "vue-router" {
  interface RouteMeta {
    title: string;
    /** Only with an account; others are asked to sign in, and come back here then. */
    signedIn?: boolean;
    /** Only without one: whoever is signed in has no use for it. */
    stranger?: boolean;
  }
}

export const router = createRouter({
  history: createWebHistory(),
  routes: [
    { path: "/", component: Home, meta: { title: "Home" } },
    { path: "/sign-in", component: SignIn, meta: { title: "Sign in", stranger: true } },
    { path: "/sign-up", component: SignUp, meta: { title: "Sign up", stranger: true } },
    { path: "/forgotten-password", component: ForgottenPassword, meta: { title: "Forgot password" } },
    { path: "/new-password", component: NewPassword, meta: { title: "New password" } },
    { path: "/verify-email", component: VerifyEmail, meta: { title: "Verify your email address" } },
    { path: "/undo-email-change", component: UndoEmailChange, meta: { title: "Undo email change" } },
    { path: "/callback", component: Callback, meta: { title: "Connecting Spotify" } },
    { path: "/now-playing", component: NowPlaying, meta: { title: "Now playing", signedIn: true } },
    { path: "/playlists", component: Playlists, meta: { title: "Playlists", signedIn: true } },
    { path: "/playlists/:id", component: Playlist, meta: { title: "Playlist", signedIn: true } },
    { path: "/top-tracks", component: TopTracks, meta: { title: "Top tracks", signedIn: true } },
    { path: "/account", component: Account, meta: { title: "Account", signedIn: true } },
    { path: "/:unknown(.*)*", component: NotFound, meta: { title: "Page not found" } },
  ],
  scrollBehavior: (_to, _from, saved) => saved ?? { top: 0 },
});

// What mails lead to: FRONTEND_URL#password-reset=<token>.
const MAILED: Record<string, string> = {
  "password-reset": "/new-password",
  "email-verification": "/verify-email",
  "email-change": "/undo-email-change",
};

/** The token a mail brought, in memory only: it leaves the address bar and the history at once. */
export const mailed = { token: "" };

router.beforeEach(async (to) => {
  const [, purpose, token] = /^#([a-z-]+)=(.+)$/.exec(to.hash) ?? [];
  if (purpose && token && MAILED[purpose]) {
    mailed.token = token;
    return { path: MAILED[purpose], replace: true };
  }
  if (typeof to.query.spotify === "string") {
    tellResult(to.query.spotify);
    void sessionChanged();
    const { spotify: _, ...query } = to.query;
    return { path: to.path, query, replace: true };
  }
  await sessionKnown();
  if (session.problem) return true; // App.vue shows it in the page's place
  if (to.meta.signedIn && !session.user) return signInThenBack(to);
  if (to.meta.stranger && session.user) return afterSignIn(to);
  return true;
});

export function signInThenBack(to: RouteLocationNormalized) {
  return { path: "/sign-in", query: { next: to.fullPath } };
}

/** Where somebody was on the way to, before they were asked to sign in. Only ever a page of this app. */
export function afterSignIn(at: RouteLocationNormalized): string {
  const next = at.query.next;
  return typeof next === "string" && /^\/(?![/\\])/.test(next) ? next : "/";
}
