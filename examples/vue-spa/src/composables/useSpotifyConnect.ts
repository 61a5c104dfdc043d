/** Connecting Spotify: to the consent page and back. */
import { onBeforeUnmount, onMounted, ref } from "vue";
import type { Connection, ConnectOptions, ConnectResult } from "backline";
import { backline } from "../api";
import { DAY_MS } from "../format";
import { showToast } from "../toasts";
import { useMutation } from "./useMutation";
import { session, sessionChanged } from "../session";
import { messageFor } from "../messages";

const SOON_MS = 30 * DAY_MS;

/** How many days remain until Spotify ends the consent, if they are few. It does so after six months. */
export function daysLeft(connection: Connection | null): number | undefined {
  if (!connection?.reauthorize_by) return undefined;
  const left = new Date(connection.reauthorize_by).getTime() - Date.now();
  return left < SOON_MS ? Math.max(0, Math.ceil(left / DAY_MS)) : undefined;
}

/** The problem that the last trip to Spotify ended with. */
export const connectFailure = ref<string | null>(null);

/** Whether the person left this page for Spotify, and returned with the back button instead of a result. */
export const cameBackFromSpotify = ref(false);

// In the history entry of the page, so that it is gone with the tab.
function markTrip(isUnderWay: boolean): void {
  history.replaceState({ ...history.state, leftForSpotify: isUnderWay }, "");
}

function noticeReturn(): void {
  cameBackFromSpotify.value = history.state?.leftForSpotify === true;
}

/**
 * Send the person to Spotify, and afterwards back to this page. It stays busy until it is left, so a second click does
 * nothing.
 *
 * `reauthorize` renews the consent of a connection for another six months. The old consent stays valid until then.
 * `scopes` asks for further permissions. `signIn` signs in with Spotify.
 */
export function useSpotifyConnect() {
  const connecting = useMutation(async (options: ConnectOptions = {}) => {
    connectFailure.value = null;
    markTrip(true);
    try {
      await backline.connect({ returnTo: location.pathname + location.search, ...options });
    } finally {
      markTrip(false); // still here
    }
    await sessionChanged(); // already connected, perhaps in another tab
  });

  // With the back button, the page returns as it was left: busy.
  const onPageShow = (event: PageTransitionEvent) => {
    if (event.persisted) connecting.busy.value = false;
    noticeReturn();
  };
  onMounted(() => {
    noticeReturn();
    window.addEventListener("pageshow", onPageShow);
  });
  onBeforeUnmount(() => window.removeEventListener("pageshow", onPageShow));
  return connecting;
}

/** Show the result of connecting, after loading the session. A URL without one is not a return from Spotify. */
export function showConnectResult(result: ConnectResult | null): void {
  if (result?.connected) return showToast("Spotify is connected.");
  const slug = result?.slug ?? "spotify-state-mismatch";
  connectFailure.value = slug;
  const name = slug === "spotify-account-in-use" && session.user ? "other-account-in-use" : slug;
  const { title, detail } = MESSAGES[name] ?? messageFor(slug, { title: "Spotify could not be connected" });
  showToast(`${title}. ${detail}`.trim(), "error");
}

// Problems that occur only here, where the URL has just the slug, or that mean something else here.
const MESSAGES: Record<string, { title: string; detail: string }> = {
  "invalid-credentials": {
    title: "This Spotify account cannot sign in",
    detail: "Its account here is disabled. Please ask the operator of this app.",
  },
  "spotify-unavailable": {
    title: "Spotify is not responding",
    detail: "Nothing was changed. Please try again in a moment.",
  },
  "spotify-account-in-use": {
    title: "This Spotify account is connected to another account here",
    detail: "Nothing was changed. If it is yours, sign in with your password, and connect Spotify again.",
  },
  "other-account-in-use": {
    title: "This Spotify account is connected to another account here",
    detail:
      "Nothing was changed. If that account is yours, sign in to it, and disconnect Spotify or delete the account.",
  },
  "spotify-account-mismatch": {
    title: "Another Spotify account is connected already",
    detail: "Disconnect it first.",
  },
  "spotify-misconfigured": {
    title: "This server's Spotify application is misconfigured",
    detail: "Please tell its operator.",
  },
};
