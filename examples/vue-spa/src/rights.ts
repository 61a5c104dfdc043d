import type { Schemas } from "backline";

export type Right = Schemas["DeviceOut"]["rights"][number];

/** What access tokens can be allowed to do. None of them can change the account. */
export const RIGHTS: Record<Right, string> = {
  "spotify:read": "See your Spotify data, such as playlists and what is playing",
  "spotify:write": "Change things in Spotify, such as playback and playlists",
  "account:read": "See your username and email address",
};
