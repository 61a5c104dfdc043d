// The README's tour, with code that @hey-api/openapi-ts has generated. Argument: the URL of the API.

import { client } from "./generated/client.gen.js";
import {
    authGetSession,
    authRegister,
    spotifyAuthorize,
    spotifyGet,
    spotifyPlaybackToken,
    spotifyWebApiGet,
    spotifyWebApiPost,
} from "./generated/sdk.gen.js";

declare const process: { argv: string[] };

const headers = { "X-Requested-With": "tour" };
let session = ""; // Node's fetch stores no cookies

client.setConfig({
    baseUrl: process.argv[2],
    auth: (scheme) => (scheme.in === "cookie" ? session : undefined),
    throwOnError: true,
});
client.interceptors.response.use((response) => {
    const cookie = /backline_session=([^;]+)/.exec(response.headers.get("Set-Cookie") ?? "");
    if (cookie) session = cookie[1]!;
    return response;
});

/** Agree on the sandbox's consent page. Returns the query of the callback. */
async function consent(url: string): Promise<{ code: string; state: string }> {
    const { origin, search } = new URL(url);
    const body = new URLSearchParams({ query: search.slice(1), person: "mira_t_42", decision: "agree" });
    const response = await fetch(`${origin}/authorize/consent`, { method: "POST", body, redirect: "manual" });
    const { searchParams } = new URL(response.headers.get("Location")!);
    return { code: searchParams.get("code")!, state: searchParams.get("state")! };
}

function check(condition: boolean, what: unknown): void {
    if (!condition) throw new Error(JSON.stringify(what));
}

const body = { username: "ada", email: "ada@example.com", password: "a long sentence is best" };
const { data: user } = await authRegister({ body, headers, throwOnError: true });
const { data: found } = await authGetSession({ throwOnError: true });
check(found.user?.id === user.id, found);

const { data: started } = await spotifyAuthorize({ throwOnError: true });
await spotifyAuthorize({ query: await consent(started.authorize_url!), throwOnError: true });
const { data: connection } = await spotifyGet({ throwOnError: true });
check(connection.status === "connected", connection);
const { data: token } = await spotifyPlaybackToken({ throwOnError: true });
check(token.token_type === "Bearer", token);

const { data } = await spotifyWebApiGet({ path: { path: "me/player" }, headers, throwOnError: true });
const player = data as { item: { type: string } };
const skipped = await spotifyWebApiPost({ path: { path: "me/player/next" }, headers });
check([200, 204].includes(skipped.response!.status), skipped);
const limited = await spotifyWebApiGet({
    path: { path: "me/top/tracks" },
    query: { query: { limit: 1 } },
    headers,
    throwOnError: true,
});
check((limited.data as { limit: number }).limit === 1, limited.data);
const { error } = await spotifyWebApiGet({
    path: { path: `tracks/${"0".repeat(22)}` },
    headers,
    throwOnError: false,
});
if (typeof error !== "object" || !error.error) throw new Error(String(error));
console.log(user.username, connection.display_name, player.item.type, error.error.status);
