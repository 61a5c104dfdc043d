// The package `backline`, as installed from its tarball, against the API and the sandbox Spotify.
import assert from "node:assert/strict";
import { test } from "node:test";
import { SpotifyApi } from "@spotify/web-api-ts-sdk";
import { ApiError, Backline, webApiSdk } from "backline";

const { API_URL: url, SANDBOX_URL: sandbox } = process.env;
const password = "a long sentence is best";
let people = 0;

/** A `fetch` that keeps cookies, and records its calls, as one browser. */
function browser() {
    const cookies = new Map();
    const calls = [];
    async function send(input, init = {}) {
        const headers = new Headers(init.headers);
        if (init.credentials === "include")
            headers.set("Cookie", [...cookies].map((pair) => pair.join("=")).join("; "));
        calls.push(`${init.method} ${new URL(input).pathname}`);
        const response = await fetch(input, { ...init, headers });
        for (const line of response.headers.getSetCookie()) {
            const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
            if (value) cookies.set(name, value);
            else cookies.delete(name);
        }
        return response;
    }
    return { fetch: send, calls };
}

async function signedUp() {
    const tab = browser();
    const backline = new Backline({ url, fetch: tab.fetch });
    const username = `person${++people}`;
    await backline.register({ username, email: `${username}@example.com`, password });
    return { backline, username, ...tab };
}

async function connected(t, person = "mira_t_42") {
    const someone = await signedUp();
    t.after(() => someone.backline.disconnect()); // so that the next test can connect the same account
    const callback = await consent(await authorizeUrl(someone.backline), person);
    assert.deepEqual(await someone.backline.completeConnect(callback), { connected: true });
    return someone;
}

/** Where `connect()` sends the browser. */
async function authorizeUrl(backline, options) {
    const target = await new Promise((assign, failed) => {
        globalThis.location = { assign };
        backline.connect(options).then(() => failed(new Error("connected already")), failed);
    });
    delete globalThis.location;
    return target;
}

/** Decide on the consent page. Returns the URL that Spotify redirects to. */
async function consent(page, person, decision = "agree") {
    const body = new URLSearchParams({ query: new URL(page).search.slice(1), person, decision });
    const response = await fetch(new URL("/authorize/consent", page), { method: "POST", body, redirect: "manual" });
    return response.headers.get("Location");
}

async function fault(members) {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(`${sandbox}/_sandbox/faults`, {
        method: "POST",
        headers,
        body: JSON.stringify(members),
    });
    assert.ok(response.ok, await response.text());
}

async function errorOf(promise) {
    const error = await promise.then(
        () => assert.fail("did not fail"),
        (reason) => reason,
    );
    assert.ok(error instanceof ApiError, error);
    return error;
}

test("a person signs up, in, and out", async () => {
    const { backline, username, fetch } = await signedUp();
    const session = await backline.session();
    assert.equal(session.user.username, username);
    assert.equal(session.spotify, null);
    assert.equal((await backline.patch("/api/user", { body: { username: `${username}x` } })).username, `${username}x`);

    const invalid = await errorOf(backline.register({ username: "a", email: "a@example.com", password }));
    assert.equal(invalid.slug, "validation-error");
    assert.equal(invalid.status, 422);
    assert.match(invalid.errors.username[0], /2 to 64/);
    assert.ok(invalid.requestId);

    assert.equal(await backline.signOut(), undefined);
    assert.equal((await new Backline({ url, fetch }).session()).authenticated, false);
    const wrong = await errorOf(backline.signIn({ login: `${username}x`, password: "not this one" }));
    assert.deepEqual([wrong.slug, wrong.status], ["invalid-credentials", 401]);
    await backline.signIn({ login: `${username}x`, password });
    const [current] = (await backline.get("/api/user/sessions")).items;
    const path = { session_id: current.id };
    assert.equal(
        await backline.delete("/api/user/sessions/{session_id}", { path, body: { current_password: password } }),
        null,
    );
    assert.equal((await backline.session()).user, null);
});

test("listeners learn that the session has ended", async () => {
    const { backline, fetch } = await signedUp();
    await backline.session();
    const seen = [];
    const ended = new Promise((done) => backline.onSessionChange(done));
    const remove = backline.onSessionChange((session) => seen.push(session));
    assert.equal((await errorOf(backline.spotify.get("me"))).slug, "spotify-not-connected"); // no change of the session
    remove();
    await new Backline({ url, fetch }).signOut(); // another tab
    assert.equal((await errorOf(backline.get("/api/user"))).slug, "not-signed-in");
    assert.equal((await ended).user, null);
    assert.deepEqual(seen, []);
});

test("connecting does not go on without the session", async () => {
    const { backline, fetch } = await signedUp();
    await backline.session();
    const ended = new Promise((done) => backline.onSessionChange(done));
    await new Backline({ url, fetch }).signOut(); // another tab
    assert.equal((await errorOf(backline.connect())).slug, "not-signed-in");
    assert.equal((await ended).user, null);
    assert.match(await authorizeUrl(backline), /^http/); // as a visitor
});

test("both styles of redirect complete a connection", async (t) => {
    const { backline, fetch } = await signedUp();
    t.after(() => backline.disconnect());
    assert.equal(await backline.completeConnect(`${url}/?page=2`), null);

    // To the API, which redirects to the app.
    let callback = await consent(await authorizeUrl(backline), "mira_t_42", "cancel");
    const navigation = { redirect: "manual", credentials: "include", headers: { Accept: "text/html" } };
    let target = (await fetch(callback, navigation)).headers.get("Location");
    assert.deepEqual(await backline.completeConnect(target), { connected: false, slug: "spotify-access-denied" });
    target = (await fetch(await consent(await authorizeUrl(backline), "mira_t_42"), navigation)).headers.get(
        "Location",
    );
    assert.deepEqual(await backline.completeConnect(target), { connected: true });
    assert.equal((await backline.connect()).spotify_id, "mira_t_42");

    await backline.disconnect();
    assert.equal((await backline.session()).spotify, null);

    // To a page of the app.
    callback = await consent(await authorizeUrl(backline), "mira_t_42");
    const stranger = await new Backline({ url, fetch: browser().fetch }).completeConnect(callback);
    assert.deepEqual(stranger, { connected: false, slug: "spotify-state-mismatch" });
    assert.deepEqual(await backline.completeConnect(callback), { connected: true });
});

test("a missing permission is asked for, and the person returns to the page", async (t) => {
    const { backline } = await connected(t);
    const save = () => backline.spotify.put("me/library", { query: { uris: "spotify:track:1301WleyT98MSxVHPZCA6M" } });
    const { slug, missingScopes: scopes, authorizeUrl: direct } = await errorOf(save());
    assert.deepEqual([slug, scopes], ["insufficient-scope", ["user-library-modify"]]);
    assert.match(direct, /user-library-modify/);

    const returnTo = "/playlists?sort=name";
    let callback = await consent(await authorizeUrl(backline, { scopes, returnTo }), "mira_t_42", "cancel");
    const declined = { connected: false, slug: "spotify-access-denied", returnTo };
    assert.deepEqual(await backline.completeConnect(callback), declined);
    callback = await consent(await authorizeUrl(backline, { scopes, returnTo }), "mira_t_42");
    assert.deepEqual(await backline.completeConnect(callback), { connected: true, returnTo });
    assert.equal(await save(), null);
    assert.deepEqual(
        (await errorOf(backline.connect({ scopes: ["evil"], returnTo: "//evil" }))).errors.return_to.length,
        1,
    );
});

test("the gateway returns Spotify's responses", async (t) => {
    const { backline } = await connected(t);
    assert.equal((await backline.spotify.get("/me")).id, "mira_t_42");
    assert.equal(
        (await backline.spotify.get("me/playlists", { query: { limit: 1, offset: undefined } })).items.length,
        1,
    );
    const created = await backline.spotify.post("me/playlists", { body: { name: "Made in a test" } });
    const cover = new Blob([Buffer.from("/9j/4AAQSkZJRg==").toString()], { type: "image/jpeg" });
    assert.equal(await backline.spotify.put(`playlists/${created.id}/images`, { body: cover }), null);
    await fault({ on: "command", kind: "bare_word", after_effect: true });
    assert.equal(await backline.spotify.put("me/player/pause"), null);
    assert.equal((await backline.spotify.get("me/player")).is_playing, false);

    const missing = await errorOf(backline.spotify.get("playlists/0000000000000000000000"));
    assert.deepEqual([missing.slug, missing.status], ["spotify-error", 404]);
    assert.ok(missing.detail);
    const free = (await connected(t, "jonas.k")).backline;
    assert.equal((await errorOf(free.spotify.put("me/player/pause"))).reason, "PREMIUM_REQUIRED");
    assert.equal(await (await connected(t, "aiko-87")).backline.spotify.get("me/player"), null); // nothing is playing
});

test("only reads are repeated, and only after failures that pass soon", async (t) => {
    const { backline, calls } = await connected(t);
    const repeated = async (send) => {
        calls.length = 0;
        await send().catch(() => undefined);
        return calls.length - 1;
    };
    const passing = { kind: "google_502", retry_after: 1 }; // the gateway itself repeats calls without Retry-After
    await fault({ on: "api", ...passing });
    assert.equal(await repeated(() => backline.spotify.get("me/top/artists")), 1);
    await fault({ on: "api", ...passing });
    assert.equal(await repeated(() => backline.spotify.get("me/top/tracks", { retry: false })), 0);
    await fault({ on: "command", ...passing });
    assert.equal(await repeated(() => backline.spotify.put("me/player/pause")), 0);
    const nobody = new Backline({ url, fetch: (...args) => (calls.push(args), fetch(...args)) });
    assert.equal(await repeated(() => nobody.spotify.get("me")), 0); // 409
    await fault({ on: "api", kind: "rate_limited", retry_after: 60 });
    const limited = await errorOf(backline.spotify.get("me/player/recently-played"));
    assert.equal(limited.slug, "spotify-rate-limited");
    assert.ok(limited.retryAfter > 3);
    assert.equal(await repeated(() => backline.spotify.get("me/player/recently-played")), 0);
});

test("a request without a response is a problem, too", async () => {
    const away = new Backline({ url: "http://127.0.0.1:1" });
    const error = await errorOf(away.post("/api/logout"));
    assert.deepEqual([error.slug, error.status], ["no-response", 0]);
    assert.ok(error.cause);
    const stop = AbortSignal.abort();
    await assert.rejects(away.get("/api/session", { signal: stop }), { name: "AbortError" });
});

test("the Web Playback SDK gets a token", async (t) => {
    const { backline } = await connected(t);
    const { getOAuthToken } = backline;
    const token = await new Promise((done) => getOAuthToken(done));
    const me = await fetch(`${sandbox}/v1/me`, { headers: { Authorization: `Bearer ${token}` } });
    assert.equal((await me.json()).id, "mira_t_42");
});

test("the Web API SDK works through the gateway", async (t) => {
    const { backline } = await connected(t);
    const spotify = new SpotifyApi(...webApiSdk(backline));
    assert.equal((await spotify.currentUser.profile()).id, "mira_t_42");
    assert.equal((await spotify.authenticate()).authenticated, true);
    await fault({ on: "command", kind: "bare_word", after_effect: true });
    const { id } = (await spotify.player.getAvailableDevices()).devices[0];
    assert.equal(await spotify.player.pausePlayback(id), undefined);
    const { items } = await spotify.currentUser.playlists.playlists(1);
    assert.equal(items.length, 1);
    const missing = await errorOf(spotify.playlists.getPlaylist("0000000000000000000000"));
    assert.deepEqual([missing.slug, missing.status], ["spotify-error", 404]);
    await assert.rejects(backline.spotify.fetch("https://example.com/v1/me"), TypeError);
    for (const id of ["../../../spotify?", "..\\..\\..\\spotify?", "%2e%2e/%2E./.%2e/spotify?"]) {
        await assert.rejects(backline.spotify.delete(`playlists/${id}/followers`), TypeError);
        await assert.rejects(backline.spotify.get(`playlists/${id}`), TypeError);
    }
    assert.equal((await backline.session()).spotify.status, "connected");
});

test("a script uses a personal access token", async (t) => {
    const { backline } = await connected(t);
    const body = { name: "a script", rights: ["spotify:read"], current_password: password };
    const { id, token } = await backline.post("/api/user/tokens", { body });
    const script = new Backline({ url, token });
    assert.equal((await script.session()).spotify.spotify_id, "mira_t_42");
    assert.equal((await script.spotify.get("me")).id, "mira_t_42");
    assert.equal((await new SpotifyApi(...webApiSdk(script)).currentUser.profile()).id, "mira_t_42");
    assert.equal((await errorOf(script.spotify.put("me/player/pause"))).slug, "insufficient-rights");
    assert.equal((await errorOf(script.get("/api/user"))).slug, "insufficient-rights");
    await backline.delete("/api/user/tokens/{token_id}", { path: { token_id: id } });
    const revoked = await errorOf(script.spotify.get("me"));
    assert.deepEqual([revoked.slug, revoked.status], ["invalid-bearer-token", 401]);
});
