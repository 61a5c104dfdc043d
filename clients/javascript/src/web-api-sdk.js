/** Adapter for @spotify/web-api-ts-sdk. */

import { fromResponse, parseJson } from "./api-error.js";

/** @import { Backline, SdkAuthentication, SdkConfiguration } from "../types/index.d.ts" */

/** The SDK requires a token, but the client authenticates its requests. */
const PLACEHOLDER = {
  access_token: "unused",
  token_type: "Bearer",
  expires_in: 0,
  refresh_token: "",
  expires: Number.MAX_SAFE_INTEGER,
};

/**
 * @param {Pick<Backline, "spotify">} backline
 * @returns {[SdkAuthentication, SdkConfiguration]}
 */
export function webApiSdk({ spotify }) {
  const authentication = {
    setConfiguration: () => undefined,
    getOrCreateAccessToken: async () => PLACEHOLDER,
    getAccessToken: async () => PLACEHOLDER,
    removeAccessToken: () => undefined,
  };
  const configuration = {
    fetch: spotify.fetch,
    // Spotify confirms some commands with a bare word labeled as JSON.
    deserializer: { deserialize: async (/** @type {Response} */ response) => parseJson(await response.text()) ?? null },
    responseValidator: {
      validateResponse: async (/** @type {Response} */ response) => {
        if (!response.ok) throw fromResponse(response, await response.text(), true);
      },
    },
  };
  return [authentication, configuration];
}
