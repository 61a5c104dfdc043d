/** The pages, who can see them, and the parameters that URLs bring along. */
import { createRouter, createWebHistory, type RouteLocationNormalized } from "vue-router";
import { backline } from "./api";
import { showConnectResult } from "./composables/useSpotifyConnect";
import Account from "./pages/Account.vue";
import Callback from "./pages/Callback.vue";
import Device from "./pages/Device.vue";
import ForgottenPassword from "./pages/ForgottenPassword.vue";
import Home from "./pages/Home.vue";
import NewPassword from "./pages/NewPassword.vue";
import NotFound from "./pages/NotFound.vue";
import NowPlaying from "./pages/NowPlaying.vue";
import Playlist from "./pages/Playlist.vue";
import Playlists from "./pages/Playlists.vue";
import SpotifyApp from "./pages/SpotifyApp.vue";
import SignIn from "./pages/SignIn.vue";
import SignUp from "./pages/SignUp.vue";
import Tokens from "./pages/Tokens.vue";
import TopTracks from "./pages/TopTracks.vue";
import UndoEmailChange from "./pages/UndoEmailChange.vue";
import VerifyEmail from "./pages/VerifyEmail.vue";
import { session, sessionChanged, ensureSession } from "./session";

declare module "vue-router" {
  interface RouteMeta {
    title: string;
    /** Signed-in people only. Others sign in first, and then return here. */
    requiresAuth?: boolean;
    /** Only for people who are not signed in. */
    guestOnly?: boolean;
  }
}

export const router = createRouter({
  history: createWebHistory(),
  routes: [
    { path: "/", component: Home, meta: { title: "Home" } },
    { path: "/sign-in", component: SignIn, meta: { title: "Sign in", guestOnly: true } },
    { path: "/sign-up", component: SignUp, meta: { title: "Sign up", guestOnly: true } },
    { path: "/forgotten-password", component: ForgottenPassword, meta: { title: "Forgot password" } },
    { path: "/new-password", component: NewPassword, meta: { title: "New password" } },
    { path: "/verify-email", component: VerifyEmail, meta: { title: "Verify your email address" } },
    { path: "/undo-email-change", component: UndoEmailChange, meta: { title: "Undo email change" } },
    { path: "/callback", component: Callback, meta: { title: "Connecting Spotify" } },
    { path: "/now-playing", component: NowPlaying, meta: { title: "Now playing", requiresAuth: true } },
    { path: "/playlists", component: Playlists, meta: { title: "Playlists", requiresAuth: true } },
    { path: "/playlists/:id", component: Playlist, meta: { title: "Playlist", requiresAuth: true } },
    { path: "/top-tracks", component: TopTracks, meta: { title: "Top tracks", requiresAuth: true } },
    { path: "/account", component: Account, meta: { title: "Account", requiresAuth: true } },
    { path: "/account/tokens", component: Tokens, meta: { title: "Access tokens", requiresAuth: true } },
    {
      path: "/account/spotify-app",
      component: SpotifyApp,
      meta: { title: "Use your own Spotify application", requiresAuth: true },
    },
    { path: "/device", component: Device, meta: { title: "Connect a device", requiresAuth: true } },
    { path: "/:unknown(.*)*", component: NotFound, meta: { title: "Page not found" } },
  ],
  scrollBehavior: (_to, _from, saved) => saved ?? { top: 0 },
});

// Links in emails: FRONTEND_URL#password-reset=<token>.
const EMAIL_LINKS: Record<string, string> = {
  "password-reset": "/new-password",
  "email-verification": "/verify-email",
  "email-change": "/undo-email-change",
};

/** The token of an email link. It is removed from the address bar and the history at once. */
export const emailLink = { token: "" };

router.beforeEach(async (to) => {
  const [, purpose, token] = /^#([a-z-]+)=(.+)$/.exec(to.hash) ?? [];
  if (purpose && token && EMAIL_LINKS[purpose]) {
    emailLink.token = token;
    return { path: EMAIL_LINKS[purpose], replace: true };
  }
  if (typeof to.query.spotify === "string") {
    const result = await backline.completeConnect(new URL(to.fullPath, location.href));
    await sessionChanged();
    showConnectResult(result);
    const query = { ...to.query, spotify: undefined };
    return { path: to.path, query, replace: true };
  }
  await ensureSession();
  if (session.problem) return true; // App.vue shows it instead of the page
  if (to.meta.requiresAuth && !session.user) return signInThenBack(to);
  if (to.meta.guestOnly && session.user) return afterSignIn(to);
  return true;
});

export function signInThenBack(to: RouteLocationNormalized) {
  return { path: "/sign-in", query: { next: to.fullPath } };
}

/** The page that was requested before signing in. Never a URL of another site. */
export function afterSignIn(at: RouteLocationNormalized): string {
  const next = at.query.next;
  return typeof next === "string" && /^\/(?![/\\])/.test(next) ? next : "/";
}
