// Sends one command with each client, and prints the status that each of them ended with.
//
// Arguments: the client, the base URL, and the token.
import axios from "axios";
import axiosRetry from "axios-retry";
import got from "got";
import { SpotifyApi } from "@spotify/web-api-ts-sdk";

const [client, baseUrl, token, uri] = process.argv.slice(2);
const url = `${baseUrl}/me/player/queue?uri=${uri}`;
const headers = { Authorization: `Bearer ${token}` };


async function withAxios(options) {
  const instance = axios.create();
  axiosRetry(instance, options);
  return instance.post(url, undefined, { headers }).then((response) => response.status, (error) => error.response.status);
}

async function withGot(retry) {
  return (await got.post(url, { headers, retry, throwHttpErrors: false })).statusCode;
}

async function withSdk() {
  let status;
  const stored = { access_token: token, token_type: "Bearer", expires_in: 3600, refresh_token: "unused" };
  const mapped = async (original, options) => {
    const response = await fetch(original.replace("https://api.spotify.com/v1/", `${baseUrl}/`), options);
    status = response.status;
    return response;
  };
  const api = SpotifyApi.withAccessToken("unused", stored, { fetch: mapped });
  await api.player.addItemToPlaybackQueue(uri).catch(() => {});
  return status;
}

const clients = {
  "axios-retry": () => withAxios({ retries: 3 }),
  "axios-retry, any method": () =>
    withAxios({ retries: 3, retryCondition: (error) => axiosRetry.isRetryableError(error) || axiosRetry.isNetworkError(error) }),
  got: () => withGot(undefined),
  "got, any method": () => withGot({ limit: 3, methods: ["POST"] }),
  "ts-sdk": withSdk,
};
console.log(await clients[client]());
