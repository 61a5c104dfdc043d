/** The way to Spotify's consent page and back. */
import { onBeforeUnmount, onMounted } from "vue";
import { api, type Connection } from "./api";
import { DAY_MS } from "./format";
import { notify } from "./notices";
import { useDeed } from "./doing";
import { sessionChanged } from "./session";
import { inWords } from "./words";

const SOON_MS = 30 * DAY_MS;

/** Spotify ends every consent after six months: how many days are left, where that is soon. */
export function daysLeft(connection: Connection | null): number | undefined {
  if (!connection?.reauthorize_by) return undefined;
  const left = new Date(connection.reauthorize_by).getTime() - Date.now();
  return left < SOON_MS ? Math.max(0, Math.ceil(left / DAY_MS)) : undefined;
}

/**
 * Send the person to Spotify. The page stays busy until it is left, so a second click begins nothing.
 *
 * Whoever is connected already stays so, unless they `reauthorize`: that begins a consent of its own, and
 * another six months. The old one goes on until the new one is given.
 */
export function useConnecting() {
  const connecting = useDeed(async ({ reauthorize = false } = {}) => {
    const answer = await api.authorize(reauthorize ? { reauthorize: "true" } : {});
    const url = answer.authorize_url;
    if (url) {
      window.location.assign(url);
      await new Promise(() => undefined);
    }
    await sessionChanged(); // connected already, perhaps in another tab
  });

  // Back from Spotify by the back button, the page is as it was left: busy.
  const awake = (event: PageTransitionEvent) => {
    if (event.persisted) connecting.busy.value = false;
  };
  onMounted(() => window.addEventListener("pageshow", awake));
  onBeforeUnmount(() => window.removeEventListener("pageshow", awake));
  return connecting;
}

/** Says once what came of it: `connected`, `denied` or `error-<slug>`, as the API put it into the address. */
export function tellResult(result: string): void {
  if (result === "connected") return notify("Spotify is connected.");
  const slug = result === "denied" ? "spotify-access-denied" : result.replace(/^error-/, "");
  const { title, detail } = inWords(slug, OTHERS[slug] ?? { title: "Spotify could not be connected", detail: "" });
  notify(`${title}. ${detail}`.trim(), "bad");
}

// Problems that are met on this way only, and whose words are not in an answer here.
const OTHERS: Record<string, { title: string; detail: string }> = {
  "spotify-account-in-use": {
    title: "This Spotify account is connected to another account here",
    detail: "Nothing was changed.",
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
