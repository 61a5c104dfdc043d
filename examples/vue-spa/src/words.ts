/** What the API's problems mean to the person in front of the page. Those that are not here say it well themselves. */

interface Words {
  title: string;
  detail: string;
}

const WORDS: Record<string, Words> = {
  // Without an answer.
  offline: { title: "You are offline", detail: "This goes on by itself when the connection is back." },
  "no-answer": { title: "The server does not answer", detail: "Please try again in a moment." },
  "app-fault": { title: "Something went wrong on this page", detail: "Loading it again usually helps." },

  // The API's own, where its words are for developers.
  "validation-error": { title: "Please check what you entered", detail: "" },
  "not-signed-in": { title: "Please sign in", detail: "Your session has ended." },
  "invalid-credentials": { title: "That did not match", detail: "The name or the password is wrong." },
  "wrong-password": { title: "This is not your password", detail: "" }, // of who is signed in
  "fresh-sign-in-required": { title: "Please enter your password", detail: "You signed in some time ago." },
  "too-many-attempts": { title: "Too many attempts", detail: "For your account's safety there is a pause now." },
  "cross-site-request": {
    title: "The server does not accept this page",
    detail: "Its address has to be in the API's CORS_ORIGINS.",
  },
  "invalid-token": {
    title: "This link does not work any more",
    detail: "It may be used already, or too old. Ask for a new mail.",
  },
  "spotify-not-connected": { title: "Spotify is not connected", detail: "Connect it to go on." },
  "spotify-reauthorization-required": {
    title: "Spotify asks for your consent again",
    detail: "It ended this app's access. Connect again, and everything is as before.",
  },
  "spotify-rate-limited": { title: "Spotify asks us to slow down", detail: "This goes on by itself after a pause." },
  "spotify-unavailable": {
    title: "Spotify does not answer at the moment",
    detail: "You stay connected; nothing is lost.",
  },
  "spotify-state-mismatch": {
    title: "That took too long, or began in another window",
    detail: "Nothing was changed. Please connect again.",
  },
  "spotify-access-denied": { title: "You did not give access", detail: "Nothing was changed." },
  "insufficient-scope": {
    title: "This needs a permission that was not given",
    detail: "Disconnect Spotify and connect it again to give it.",
  },

  // Spotify's own answers, by its reason.
  "spotify-answered": { title: "Spotify did not do that", detail: "" },
  PREMIUM_REQUIRED: { title: "This needs Spotify Premium", detail: "You can still see what plays." },
  NO_ACTIVE_DEVICE: { title: "No device is active", detail: "Choose one below, or open Spotify somewhere." },
  UNKNOWN: { title: "Spotify does not allow that right now", detail: "" },
};

/** Words for a problem: ours, or else those that came with it. */
export function inWords(name: string, came: Partial<Words> = {}): Words {
  const known = WORDS[name] ?? WORDS["spotify-answered"]!;
  if (!WORDS[name] && came.title) return { title: came.title, detail: came.detail ?? "" };
  return { title: known.title, detail: known.detail || (name === "spotify-answered" ? came.detail ?? "" : "") };
}
