/** Messages for people, for those problems of the API whose own text is meant for developers. */

interface Message {
  title: string;
  detail: string;
}

const MESSAGES: Record<string, Message> = {
  // Without a response.
  offline: { title: "You are offline", detail: "The app continues when you are back online." },
  "no-response": { title: "The server is not responding", detail: "Please try again in a moment." },
  "app-error": { title: "Something went wrong on this page", detail: "Reloading it usually helps." },

  // Problems of the API.
  "validation-error": { title: "Please check what you entered", detail: "" },
  "not-signed-in": { title: "Please sign in", detail: "Your session has ended." },
  "invalid-credentials": { title: "That didn't match", detail: "The username or the password is wrong." },
  "wrong-password": { title: "This is not your password", detail: "" }, // while signed in
  "wrong-code": { title: "This code is invalid or has expired", detail: "Start again on the device." },
  "too-many-tokens": { title: "You have too many access tokens", detail: "Revoke one that you no longer need." },
  "fresh-sign-in-required": { title: "Please enter your password", detail: "This confirms that it is you." },
  "too-many-attempts": {
    title: "Too many attempts",
    detail: "To protect your account, please wait before you try again.",
  },
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
  "spotify-outcome-unknown": {
    title: "Spotify did not respond",
    detail: "This may have worked anyway. Check before you try again.",
  },
  "spotify-state-mismatch": {
    title: "That took too long, or started in another window",
    detail: "Nothing was changed. Please connect again.",
  },
  "spotify-access-denied": {
    title: "Spotify was not connected",
    detail: "Access was not granted. Nothing was changed.",
  },
  "spotify-app-required": {
    title: "You need a Spotify application of your own",
    detail: "Creating one takes five minutes. Then connect Spotify with it.",
  },
  "spotify-app-refused": {
    title: "Spotify rejects your application",
    detail: "Check its client ID and its client secret in Spotify's dashboard.",
  },
  "spotify-user-not-registered": {
    title: "Spotify does not let this account use your application",
    detail: "Add it under User Management in Spotify's dashboard. The application's owner needs Premium.",
  },
  "insufficient-scope": {
    title: "This needs a permission that you haven't granted",
    detail: "Connect Spotify again to grant it.",
  },

  // Errors of Spotify, by reason.
  "spotify-error": { title: "Spotify rejected that", detail: "" },
  PREMIUM_REQUIRED: { title: "This needs Spotify Premium", detail: "You can still see what is playing." },
  NO_ACTIVE_DEVICE: { title: "No device is active", detail: "Choose one below, or open Spotify somewhere." },
  UNKNOWN: { title: "Spotify does not allow that right now", detail: "" },
};

/** The message for a problem: ours or, without one, the problem's own. */
export function messageFor(name: string, own: Partial<Message> = {}): Message {
  const message = MESSAGES[name] ?? MESSAGES["spotify-error"]!;
  if (!MESSAGES[name] && own.title) return { title: own.title, detail: own.detail ?? "" };
  return { title: message.title, detail: message.detail || (name === "spotify-error" ? (own.detail ?? "") : "") };
}
