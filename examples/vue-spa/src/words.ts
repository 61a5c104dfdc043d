/** What the API's problems mean to the person in front of the page. Those that are not here say it well themselves. */

interface Words {
  title: string;
  detail: string;
}

const WORDS: Record<string, Words> = {
  // Without an answer.
  offline: { title: "You are offline", detail: "The app continues when you are back online." },
  "no-answer": { title: "The server is not responding", detail: "Please try again in a moment." },
  "app-fault": { title: "Something went wrong on this page", detail: "Reloading it usually helps." },

  // The API's own, where its words are for developers.
  "validation-error": { title: "Please check what you entered", detail: "" },
  "not-signed-in": { title: "Please sign in", detail: "Your session has ended." },
  "invalid-credentials": { title: "That didn't match", detail: "The username or the password is wrong." },
  "wrong-password": { title: "This is not your password", detail: "" }, // of who is signed in
  "fresh-sign-in-required": { title: "Please enter your password", detail: "You signed in some time ago." },
  "too-many-attempts": { title: "Too many attempts", detail: "To protect your account, please wait before you try again." },
  "cross-site-request": {
    title: "The server does not accept this page",
    detail: "Its address must be in the API's CORS_ORIGINS.",
  },
  "invalid-token": {
    title: "This link is invalid or has expired",
    detail: "It may have been used already. Request a new email.",
  },
  "spotify-not-connected": { title: "Spotify is not connected", detail: "Connect it to continue." },
  "spotify-reauthorization-required": {
    title: "Spotify needs your consent again",
    detail: "This app's access has ended. Connect again to continue.",
  },
  "spotify-rate-limited": { title: "Spotify asks us to slow down", detail: "The app continues after a pause." },
  "spotify-unavailable": {
    title: "Spotify is not responding",
    detail: "You are still connected, and nothing is lost.",
  },
  "spotify-state-mismatch": {
    title: "That took too long, or started in another window",
    detail: "Nothing was changed. Please connect again.",
  },
  "spotify-access-denied": { title: "Spotify was not connected", detail: "Access was not granted. Nothing was changed." },
  "insufficient-scope": {
    title: "This needs a permission that you haven't granted",
    detail: "Connect Spotify again to grant it.",
  },

  // Spotify's own answers, by its reason.
  "spotify-answered": { title: "Spotify refused that", detail: "" },
  PREMIUM_REQUIRED: { title: "This needs Spotify Premium", detail: "You can still see what is playing." },
  NO_ACTIVE_DEVICE: { title: "No device is active", detail: "Choose one below, or open Spotify somewhere." },
  UNKNOWN: { title: "Spotify does not allow that right now", detail: "" },
};

/** Words for a problem: ours, or else those that came with it. */
export function inWords(name: string, came: Partial<Words> = {}): Words {
  const known = WORDS[name] ?? WORDS["spotify-answered"]!;
  if (!WORDS[name] && came.title) return { title: came.title, detail: came.detail ?? "" };
  return { title: known.title, detail: known.detail || (name === "spotify-answered" ? came.detail ?? "" : "") };
}
